# SPDX-License-Identifier: Apache-2.0
"""Labels that rate an answer: rows that have one are KTO, or the user must set the format."""

from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.options import FieldNames
from finetune_trainer.data.rowproblems import Code, Issue

LABELS: Final = {"true": True, "false": False, "1": True, "0": False}
KTO_TAG: Final = "kto_tag"
"""Name of the label in LLaMA-Factory."""
RATING_TEXTS: Final = frozenset(
    {
        *("yes", "no", "y", "n", "good", "bad", "right", "wrong", "correct", "incorrect", "pass", "fail"),
        *("chosen", "rejected", "accepted", "accept", "reject", "approved", "desirable", "undesirable"),
        *("up", "down", "thumbs_up", "thumbs_down", "👍", "👎", "t", "f", "-1", "+1"),
    }
)
"""Texts that usually rate an answer, other than true and false. KTO does not read them."""


class AnswerRatings:
    """Finds the label that rates a record's answer."""

    def __init__(self, names: FieldNames) -> None:
        taken = {names.prompt, names.completion, names.messages, names.chosen, names.rejected}
        self.label = names.label or "label"
        self._fields = tuple(name for name in (self.label, KTO_TAG) if name not in taken)

    def is_kto(self, record: Fields) -> bool:
        """Whether the label is true or false, in any spelling that KTO reads."""
        return self.label in self._fields and label_of(record.get(self.label)) is not None

    def issue(self, record: Fields) -> Issue | None:
        """Why the record's answer must not simply be learned; None if no label may rate it."""
        for name in self._fields:
            if name in record and is_rating(record[name]):
                return Issue(
                    Code.FORMATS_MIXED,
                    f"{name} is {_shown(record[name])}, which may rate the answer as good or bad",
                    "no such label, or a format that defines its meaning",
                    "set format: KTO (columns.label names the label) to learn from good and bad answers,"
                    " or set the format without a label to learn every answer",
                    column=name,
                )
        return None


def label_of(value: Any) -> bool | None:
    """The truth value of a label, which tables write as a text, 0 or 1; None for another value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    return LABELS.get(value.strip().lower()) if isinstance(value, str) else None


def is_rating(value: Any) -> bool:
    """Whether a value may rate an answer as good or bad."""
    if label_of(value) is not None:
        return True
    if isinstance(value, int) and value == -1:
        return True
    return isinstance(value, str) and value.strip().lower() in RATING_TEXTS


def _shown(value: Any) -> str:
    # The value is one of a few usual words and numbers, so it is not marked as a quotation.
    return str(value).lower() if isinstance(value, bool) else repr(value)
