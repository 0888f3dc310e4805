"""Labels that judge an answer: rows with one are KTO, or a person says what they are."""

from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.options import FieldNames
from finetune_trainer.data.rowproblems import Code, Issue

LABELS: Final = {"true": True, "false": False, "1": True, "0": False}
KTO_TAG: Final = "kto_tag"
"""The name of the label in LLaMA-Factory."""
RATING_TEXTS: Final = frozenset(
    {
        *("yes", "no", "y", "n", "good", "bad", "right", "wrong", "correct", "incorrect", "pass", "fail"),
        *("chosen", "rejected", "accepted", "accept", "reject", "approved", "desirable", "undesirable"),
        *("up", "down", "thumbs_up", "thumbs_down", "👍", "👎", "t", "f", "-1", "+1"),
    }
)
"""Texts that usually judge an answer, but are not true or false: KTO does not read them, nothing guesses."""


class AnswerRatings:
    """Finds the label that judges a record's answer."""

    def __init__(self, names: FieldNames) -> None:
        taken = {names.prompt, names.completion, names.messages, names.chosen, names.rejected}
        self.label = names.label or "label"
        self._fields = tuple(name for name in (self.label, KTO_TAG) if name not in taken)

    def is_kto(self, record: Fields) -> bool:
        """Whether the label says true or false, in any spelling that KTO reads."""
        return self.label in self._fields and label_of(record.get(self.label)) is not None

    def issue(self, record: Fields) -> Issue | None:
        """Why a record must not be read as an answer to learn."""
        for name in self._fields:
            if name in record and is_rating(record[name]):
                return Issue(
                    Code.FORMATS_MIXED,
                    f"{name} is {_said(record[name])}, which may say whether the answer is good",
                    "no such label, or a format that says what it means",
                    "set format: KTO (columns.label names the label) to learn from good and bad answers,"
                    " or the format without it to learn every answer",
                    column=name,
                )
        return None


def label_of(value: Any) -> bool | None:
    """Whether a value says true or false; tables have texts and 0 and 1 for it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    return LABELS.get(value.strip().lower()) if isinstance(value, str) else None


def is_rating(value: Any) -> bool:
    """Whether a value may say that an answer is good or bad."""
    if label_of(value) is not None:
        return True
    if isinstance(value, int) and value == -1:
        return True
    return isinstance(value, str) and value.strip().lower() in RATING_TEXTS


def _said(value: Any) -> str:
    # Of a few usual words and numbers, so no quotation of a row.
    return str(value).lower() if isinstance(value, bool) else repr(value)
