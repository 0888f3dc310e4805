"""Rows that data preparation found fault with, as the status shows them."""

from typing import Final

from finetune_operator.status.conditions import shortened
from finetune_trainer.contract import PrepareResult

PROBLEMS_AT_MOST: Final = 10


def shown_problems(prepared: PrepareResult) -> tuple[str, ...]:
    """The first problems; the store has all of them."""
    return tuple(shortened(text) for text in prepared.problems[:PROBLEMS_AT_MOST])
