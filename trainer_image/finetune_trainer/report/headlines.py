# SPDX-License-Identifier: Apache-2.0
"""Headlines for kinds of problems and for relations between rows."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.data.row_problems import Code

DATASET_CODES: Final = frozenset(
    {
        Code.FORMS_DIFFER,
        Code.COLUMNS_IGNORED,
        Code.FIELDS_IGNORED,
        Code.FEW_ROWS,
        Code.NO_TRAINING_ROWS,
        Code.EMPTY_SPLIT,
        Code.CONFLICTING_DUPLICATES,
        Code.NEAR_DUPLICATES,
        Code.NEAR_DUPLICATES_LIMITED,
        Code.LEAKED_ROWS,
        Code.NEAR_CONSTANT_COMPLETIONS,
        Code.ONE_LABEL,
        Code.COMBINED_LABELS,
        Code.SIMILAR_LABELS,
        Code.LABEL_NOT_HELD_OUT,
    }
)
"""Problems of all rows together."""

HEADLINES: Final[Mapping[Code, str]] = {
    Code.FILE_EMPTY: "The file is empty",
    Code.FILE_UNKNOWN: "The format is unknown",
    Code.FILE_DAMAGED: "The file is damaged",
    Code.FILE_ENDS_EARLY: "The file ends too early",
    Code.FORMATS_MIXED: "Formats are mixed",
    Code.FORMS_DIFFER: "Sources have different forms of rows",
    Code.HEADER: "The header does not match",
    Code.ENCODING: "Text is not UTF-8",
    Code.SYNTAX: "Rows cannot be parsed",
    Code.ROW_TOO_LONG: "Rows are too long",
    Code.FIELD_COUNT: "Rows have too few or too many fields",
    Code.FIELD_MISSING: "Fields are missing",
    Code.FIELD_EMPTY: "Fields are empty",
    Code.FIELD_TYPE: "Fields have the wrong type",
    Code.FIELD_VALUE: "Fields have an invalid value",
    Code.CONTROL_CHARACTER: "Texts contain control characters",
    Code.BROKEN_CHARACTER: "Texts contain broken characters",
    Code.UNSUPPORTED: "Rows have unsupported content",
    Code.ROLE: "Messages have the wrong role",
    Code.TURN_ORDER: "Turns are in the wrong order",
    Code.NOTHING_TO_LEARN: "Rows have no answer to learn",
    Code.TOOL_CALL: "Tool calls and results do not match",
    Code.GROUP: "Rows have no group",
    Code.SPLIT: "Rows have no split",
    Code.SECRET: "Texts may contain secrets",
    Code.EMAIL_ADDRESS: "Texts contain e-mail addresses",
    Code.PAYMENT_CARD: "Texts contain payment card numbers",
    Code.IBAN: "Texts contain bank account numbers (IBAN)",
    Code.PHONE_NUMBER: "Texts contain phone numbers",
    Code.CONTROL_SEQUENCE: "Texts contain control sequences of a model",
    Code.COLUMNS_IGNORED: "Named columns are not used",
    Code.FIELDS_IGNORED: "Fields that may have a meaning are not read",
    Code.FEW_ROWS: "There are few rows",
    Code.NO_TRAINING_ROWS: "There are no rows to train on",
    Code.EMPTY_SPLIT: "A split is empty",
    Code.CONFLICTING_DUPLICATES: "Equal inputs have different answers",
    Code.NEAR_DUPLICATES: "Rows are nearly the same",
    Code.NEAR_DUPLICATES_LIMITED: "Near duplicates were searched in a part of the rows",
    Code.LEAKED_ROWS: "Training rows are also in validation or test",
    Code.ONE_LABEL: "All labels are the same",
    Code.COMBINED_LABELS: "Several labels are one answer",
    Code.SIMILAR_LABELS: "Labels look the same",
    Code.LABEL_NOT_HELD_OUT: "Labels have no held-out rows",
    Code.NEAR_CONSTANT_COMPLETIONS: "Nearly all answers are the same",
}

RELATIONS: Final[Mapping[str, str]] = {
    "Exact": "is the same as",
    "Near": "is nearly the same as",
    "Conflict": "has a different answer than",
    "Leak": "is a training row and the same as the held-out",
    "GroupLeak": "is a training row of the same group as the held-out",
    "NearLeak": "is a training row and nearly the same as the held-out",
}
"""Phrase between the positions of two similar rows."""


def headline(code: str) -> str:
    """The headline of a code."""
    return HEADLINES[Code(code)]
