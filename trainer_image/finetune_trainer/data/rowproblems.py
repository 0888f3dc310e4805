# SPDX-License-Identifier: Apache-2.0
"""Problems of rows: each issue names what is wrong, what was expected and what to do.

The report, which is in the store next to the rows, may quote them. Status, events and logs may not. So
quotations are marked, and an issue has a second wording without them.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

Severity = Literal["error", "warning"]

QUOTED: Final = re.compile("\x02([^\x02-\x04]*)\x03([^\x02-\x04]*)\x04")
"""A quotation of rows, and its replacement where rows must not be quoted."""
MARKS: Final = re.compile("[\x02-\x04]")


def quoted(text: str, instead: str) -> str:
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
