# SPDX-License-Identifier: Apache-2.0
"""Problems of rows: each issue names what is wrong, what was expected and what to do.

The report, which is in the store next to the rows, may quote them. Status, events and logs may not. So
quotations are marked, and an issue has a second wording without them.

All formats share the checks of single values and the way in which issues show them.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

Severity = Literal["error", "warning"]

QUOTED: Final = re.compile("\x02([^\x02-\x04]*)\x03([^\x02-\x04]*)\x04")
"""A quotation of rows, and its replacement where rows must not be quoted."""
MARKS: Final = re.compile("[\x02-\x04]")


def mark_quoted(text: str, instead: str) -> str:
    """Mark a part of a message as quoted from rows; `instead` replaces it where rows must not be quoted."""
    return f"\x02{MARKS.sub('?', text)}\x03{instead}\x04"


class Code(StrEnum):
    """Kinds of problems. The names are stable for programs that read the report."""

    # Whole files.
    FILE_EMPTY = "FileEmpty"
    FILE_UNKNOWN = "FileUnknown"
    FILE_DAMAGED = "FileDamaged"
    FILE_ENDS_EARLY = "FileEndsEarly"
    FORMATS_MIXED = "FormatsMixed"
    FORMS_DIFFER = "FormsDiffer"
    HEADER = "Header"
    # Bytes of a record.
    ENCODING = "Encoding"
    SYNTAX = "Syntax"
    ROW_TOO_LONG = "RowTooLong"
    FIELD_COUNT = "FieldCount"
    # Fields of a record.
    FIELD_MISSING = "FieldMissing"
    FIELD_EMPTY = "FieldEmpty"
    FIELD_TYPE = "FieldType"
    FIELD_VALUE = "FieldValue"
    CONTROL_CHARACTER = "ControlCharacter"
    BROKEN_CHARACTER = "BrokenCharacter"
    UNSUPPORTED = "Unsupported"
    # Conversations.
    ROLE = "Role"
    TURN_ORDER = "TurnOrder"
    NOTHING_TO_LEARN = "NothingToLearn"
    TOOL_CALL = "ToolCall"
    # Splits.
    GROUP = "Group"
    SPLIT = "Split"
    # Content that should not be learned.
    SECRET = "Secret"
    EMAIL_ADDRESS = "EmailAddress"
    PAYMENT_CARD = "PaymentCard"
    IBAN = "IBAN"
    PHONE_NUMBER = "PhoneNumber"
    CONTROL_SEQUENCE = "ControlSequence"
    # All rows together.
    COLUMNS_IGNORED = "ColumnsIgnored"
    FIELDS_IGNORED = "FieldsIgnored"
    FEW_ROWS = "FewRows"
    NO_TRAINING_ROWS = "NoTrainingRows"
    EMPTY_SPLIT = "EmptySplit"
    CONFLICTING_DUPLICATES = "ConflictingDuplicates"
    NEAR_DUPLICATES = "NearDuplicates"
    NEAR_DUPLICATES_LIMITED = "NearDuplicatesLimited"
    LEAKED_ROWS = "LeakedRows"
    ONE_LABEL = "OneLabel"
    COMBINED_LABELS = "CombinedLabels"
    SIMILAR_LABELS = "SimilarLabels"
    LABEL_NOT_HELD_OUT = "LabelNotHeldOut"
    NEAR_CONSTANT_COMPLETIONS = "NearConstantCompletions"


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong; `what` completes the sentence "this row …"."""

    code: Code
    what: str
    expected: str
    fix: str
    column: str | None = None
    """Column or field with the problem, if any, as a path such as `messages[1].role`."""
    severity: Severity = "error"
    public: str = field(default="", compare=False, repr=False)
    """The whole issue without quotations, for status, events and logs; derived from the other fields."""

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("what", "expected", "fix")}
        if not self.public:
            public = _sentence(**{name: QUOTED.sub(r"\2", value) for name, value in parts.items()})
            object.__setattr__(self, "public", public)
        for name, value in parts.items():
            object.__setattr__(self, name, QUOTED.sub(r"\1", value))

    def __str__(self) -> str:
        return _sentence(self.what, self.expected, self.fix)


def _sentence(what: str, expected: str, fix: str) -> str:
    return "; ".join(part for part in (what, f"expected {expected}" if expected else "", fix) if part)


@dataclass(frozen=True, slots=True)
class RowPosition:
    """Position of a row. Records and lines count from 1.

    In JSON Lines the number of a record is its line. In CSV and TSV it counts the records below the header,
    and `line` is the first line of the record. In JSON lists and Parquet files records have no line. Without
    a record it is the position of the whole file. `file` is set if the source has several files, and `source`
    if there are several sources.
    """

    file: str | None = None
    record: int | None = None
    line: int | None = None
    source: str | None = None

    def __str__(self) -> str:
        row = None if self.record is None else f"row {self.record}"
        if row is not None and self.line is not None and self.line != self.record:
            row = f"{row} (line {self.line})"
        return " ".join(part for part in (self.source, self.file, row) if part is not None) or "file"


@dataclass(frozen=True, slots=True)
class InvalidRecord:
    """An unusable record, or an unusable file."""

    position: RowPosition
    issues: tuple[Issue, ...]
    ends_file: bool = False
    """Whether nothing after this position can be read, so that dropping rows does not help."""


FORBIDDEN_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters except tab and line ends, and surrogates."""
INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Characters that a reader does not see: zero-width characters, direction marks, variation selectors."""
OUTER_SPACES: Final = re.compile("^ +| +$| {2,}")
"""Spaces that a reader does not see."""
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
MAX_NAMES: Final = 200
"""Maximum number of names that are checked for looking like field names; more are shown in reports only."""
MAX_NAME_CHARACTERS: Final = 100
"""Maximum length of a name in a message."""
TYPE_NAMES: Final = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    type(None): "null",
}
MAX_SHOWN_CHARACTERS: Final = 40
NAME: Final = re.compile(r"[A-Za-z]{1,24}(?:[_.-][A-Za-z]{1,24}){0,3}(?:[_-]?[0-9]{1,3})?")
"""Texts that look like a field name, and not like a sentence or a key."""


def type_name(value: Any) -> str:
    """The type of a value in words."""
    return TYPE_NAMES.get(type(value)) or f"of the type {type(value).__name__}"


def show_value(value: Any) -> str:
    """An unexpected value for a message: a truncated text in quotes, a number, or the type of another value.

    Texts and numbers are marked as quotations of rows.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return type_name(value)
    text = str(value)
    short = text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"
    return (
        mark_quoted(repr(short), "another text")
        if isinstance(value, str)
        else mark_quoted(short, "another number")
    )


def field_name(name: str) -> str:
    """The name of a field, marked as a quotation of rows unless it looks like a name."""
    return name if NAME.fullmatch(name) else mark_quoted(printable(name), "a field")


def field_names(names: Iterable[str], noun: str = "fields", prefix: str = "") -> str:
    """Names of fields, listed after a prefix, and marked as a quotation of rows unless all look like names.

    In a table without a header, the texts of the first row are the names.
    """
    all_names = list(names)
    if len(all_names) <= MAX_NAMES and all(map(NAME.fullmatch, all_names)):
        return prefix + quote_names(all_names)
    return mark_quoted(prefix + quote_names(all_names), f"{len(all_names)} {noun}")


def text_issue(field: str, value: Any) -> Issue | None:
    """The issue of a value that must be a non-empty text; None if it is valid."""
    if not isinstance(value, str):
        return Issue(
            Code.FIELD_TYPE,
            f"{field} is {type_name(value)}",
            "text",
            f"write {field} as a string in quotes",
            column=field,
        )
    if not value or value.isspace():
        return Issue(
            Code.FIELD_EMPTY, f"{field} is empty", "text", f"fill {field} in, or remove the row", column=field
        )
    found = FORBIDDEN_CHARACTERS.search(value)
    if found is None:
        return None
    number, position = ord(found[0]), found.start() + 1
    if SURROGATE.match(found[0]):
        return Issue(
            Code.BROKEN_CHARACTER,
            f"{field} has the unpaired surrogate U+{number:04X} at character {position}",
            "complete characters",
            "export the row again as UTF-8, without truncating texts by bytes",
            column=field,
        )
    return Issue(
        Code.CONTROL_CHARACTER,
        f"{field} has the control character U+{number:04X} at character {position}",
        "text without control characters other than tab and line ends",
        "remove the character",
        column=field,
    )


def normalize_line_ends(text: str) -> str:
    """Convert CRLF and CR to LF, so that the platform that wrote a file makes no difference."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def normalize_visible(text: str) -> str:
    """The text as a reader sees it: in Unicode form NFKC, without invisible characters, spaces collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return " ".join(text.split())


def quote_names(names: Iterable[str]) -> str:
    """Names in quotes, at most ten, in a form that UTF-8 can encode."""
    short = [
        name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 1] + "…" for name in names
    ]
    more = f" and {len(short) - 10} more" if len(short) > 10 else ""
    text = ", ".join(f'"{name}"' for name in short[:10]) + more
    return printable(text)


def printable(text: str) -> str:
    """The text in a form that UTF-8 can encode: surrogates as escape sequences."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def show_hidden_characters(text: str) -> str:
    """A text in quotes. Outer and repeated spaces are visible, and other hidden characters are escaped."""
    text = OUTER_SPACES.sub(lambda spaces: "␣" * len(spaces[0]), text)
    return f"'{''.join(_escaped(each) if _is_hidden(each) else each for each in text)}'"


def _is_hidden(character: str) -> bool:
    """Whether a reader may not see a character, or confuse it with another one."""
    return (
        INVISIBLE.match(character) is not None
        or (character.isspace() and character != " ")
        or unicodedata.normalize("NFKD", character) != character
        or unicodedata.combining(character) > 0
    )


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"
