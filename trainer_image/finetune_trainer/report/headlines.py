"""The kinds of problems and of likeness, in plain words."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.data.rowproblems import Code

OF_ALL_ROWS: Final = frozenset(
    {
        Code.COLUMNS_IGNORED,
        Code.LABELS_NOT_READ,
        Code.FEW_ROWS,
        Code.NO_TRAINING_ROWS,
        Code.EMPTY_SPLIT,
        Code.CONFLICTING_DUPLICATES,
        Code.NEAR_DUPLICATES,
        Code.NEAR_DUPLICATES_SKIPPED,
        Code.LEAKED_ROWS,
        Code.NEAR_CONSTANT_COMPLETIONS,
        Code.ONE_LABEL,
        Code.LABEL_NOT_HELD_OUT,
    }
)
"""What is said of the rows together."""

HEADLINES: Final[Mapping[Code, str]] = {
    Code.FILE_EMPTY: "The file is empty",
    Code.FILE_UNKNOWN: "The format cannot be told",
    Code.FILE_DAMAGED: "The file is damaged",
    Code.FILE_ENDS_EARLY: "The file ends too early",
    Code.FORMATS_MIXED: "Formats are mixed",
    Code.HEADER: "The header does not fit",
    Code.ENCODING: "Text is not UTF-8",
    Code.SYNTAX: "Rows cannot be parsed",
    Code.ROW_TOO_LONG: "Rows are too long",
    Code.FIELD_COUNT: "Rows have too few or too many fields",
    Code.FIELD_MISSING: "Fields are missing",
    Code.FIELD_EMPTY: "Fields are empty",
    Code.FIELD_TYPE: "Fields have the wrong type",
    Code.FIELD_VALUE: "Fields have a value that means nothing here",
    Code.CONTROL_CHARACTER: "Texts have control characters",
    Code.BROKEN_CHARACTER: "Texts have broken characters",
    Code.UNSUPPORTED: "Rows have something that is not supported",
    Code.ROLE: "Messages have a wrong role",
    Code.TURN_ORDER: "Turns are in the wrong order",
    Code.NOTHING_TO_LEARN: "Rows have no answer to learn",
    Code.TOOL_CALL: "Tool calls do not fit",
    Code.GROUP: "Rows have no group",
    Code.SPLIT: "Rows have no split",
    Code.SECRET: "Texts may have secrets",
    Code.EMAIL_ADDRESS: "Texts have e-mail addresses",
    Code.PAYMENT_CARD: "Texts have numbers of payment cards",
    Code.IBAN: "Texts have bank account numbers (IBAN)",
    Code.PHONE_NUMBER: "Texts have phone numbers",
    Code.CONTROL_SEQUENCE: "Texts have control sequences of a model",
    Code.COLUMNS_IGNORED: "Columns are named in vain",
    Code.LABELS_NOT_READ: "Labels that judge answers are not read",
    Code.FEW_ROWS: "There are few rows",
    Code.NO_TRAINING_ROWS: "There are no rows to train on",
    Code.EMPTY_SPLIT: "A split is empty",
    Code.CONFLICTING_DUPLICATES: "Equal inputs have different answers",
    Code.NEAR_DUPLICATES: "Rows are nearly the same",
    Code.NEAR_DUPLICATES_SKIPPED: "Near duplicates were not looked for",
    Code.LEAKED_ROWS: "Training rows are in validation or test too",
    Code.ONE_LABEL: "All labels are the same",
    Code.LABEL_NOT_HELD_OUT: "Labels have no held-out rows",
    Code.NEAR_CONSTANT_COMPLETIONS: "Nearly all answers are the same",
}

KINSHIPS: Final[Mapping[str, str]] = {
    "Exact": "is the same as",
    "Near": "is nearly the same as",
    "Conflict": "has another answer than",
    "Leak": "is for training, and the same as the held-out",
    "NearLeak": "is for training, and nearly the same as the held-out",
}
"""Between the two places of an example."""


def headline(code: str) -> str:
    """A code in plain words."""
    return HEADLINES[Code(code)]
