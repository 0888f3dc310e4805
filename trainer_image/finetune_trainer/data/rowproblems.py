"""What is wrong with rows: said once a place, with what was expected and what to do.

The report, which lies in the store beside the rows, may quote them. Status, events and logs may not: what is
quoted is marked, and an issue keeps a second wording without it.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

Severity = Literal["error", "warning"]

QUOTED: Final = re.compile("\x02([^\x02-\x04]*)\x03([^\x02-\x04]*)\x04")
"""What rows say, and what is said in its place where rows must not be quoted."""
MARKS: Final = re.compile("[\x02-\x04]")


def quoted(text: str, instead: str) -> str:
    """A part of an issue's wording that comes from the rows; `instead` is said where they are not quoted."""
    return f"\x02{MARKS.sub('?', text)}\x03{instead}\x04"


class Code(StrEnum):
    """The kinds of problems; stable names, for programs that read the report."""

    # Of a file as a whole.
    FILE_EMPTY = "FileEmpty"
    FILE_UNKNOWN = "FileUnknown"
    FILE_DAMAGED = "FileDamaged"
    FILE_ENDS_EARLY = "FileEndsEarly"
    FORMATS_MIXED = "FormatsMixed"
    HEADER = "Header"
    # Of a record's bytes.
    ENCODING = "Encoding"
    SYNTAX = "Syntax"
    ROW_TOO_LONG = "RowTooLong"
    FIELD_COUNT = "FieldCount"
    # Of a record's fields.
    FIELD_MISSING = "FieldMissing"
    FIELD_EMPTY = "FieldEmpty"
    FIELD_TYPE = "FieldType"
    FIELD_VALUE = "FieldValue"
    CONTROL_CHARACTER = "ControlCharacter"
    BROKEN_CHARACTER = "BrokenCharacter"
    UNSUPPORTED = "Unsupported"
    # Of a conversation.
    ROLE = "Role"
    TURN_ORDER = "TurnOrder"
    NOTHING_TO_LEARN = "NothingToLearn"
    TOOL_CALL = "ToolCall"
    # Of a row's place in the division.
    GROUP = "Group"
    SPLIT = "Split"
    # What should not be learned.
    SECRET = "Secret"
    EMAIL_ADDRESS = "EmailAddress"
    PAYMENT_CARD = "PaymentCard"
    IBAN = "IBAN"
    PHONE_NUMBER = "PhoneNumber"
    CONTROL_SEQUENCE = "ControlSequence"
    # Of the rows together.
    COLUMNS_IGNORED = "ColumnsIgnored"
    LABELS_NOT_READ = "LabelsNotRead"
    FEW_ROWS = "FewRows"
    NO_TRAINING_ROWS = "NoTrainingRows"
    EMPTY_SPLIT = "EmptySplit"
    CONFLICTING_DUPLICATES = "ConflictingDuplicates"
    NEAR_DUPLICATES = "NearDuplicates"
    NEAR_DUPLICATES_SKIPPED = "NearDuplicatesSkipped"
    LEAKED_ROWS = "LeakedRows"
    ONE_LABEL = "OneLabel"
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
    """The column or field, where one is at fault; as a path, such as `messages[1].role`."""
    severity: Severity = "error"
    public: str = field(default="", compare=False, repr=False)
    """The whole issue without a word of the rows, for status, events and logs; made of the others."""

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
    """Where it is; records and lines count from 1.

    In JSON Lines a record's number is its line. In CSV and TSV it counts the records below the header, and
    `line` is the line where the record begins. In JSON lists and Parquet files records have no line. Without
    a record the whole file is meant. `file` is set where the source has several.
    """

    file: str | None = None
    record: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        row = None if self.record is None else f"row {self.record}"
        if row is not None and self.line is not None and self.line != self.record:
            row = f"{row} (line {self.line})"
        return " ".join(part for part in (self.file, row) if part is not None) or "file"


@dataclass(frozen=True, slots=True)
class InvalidRecord:
    """A row, or a whole file, that cannot be used."""

    position: RowPosition
    issues: tuple[Issue, ...]
    ends_file: bool = False
    """Nothing after this place can be read; dropping rows does not help."""
