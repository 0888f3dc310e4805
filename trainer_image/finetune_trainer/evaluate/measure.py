"""How a metric measures a row, and how much the row counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measured import MeasuredBatch
from finetune_trainer.tokens.encode import IGNORE_INDEX


def count_row(_: Example) -> int:
    """Every row counts the same."""
    return 1


def count_labelled_tokens(example: Example) -> int:
    """Every token of the correct answer counts the same; 0 if none is left after truncation."""
    return sum(label != IGNORE_INDEX for label in example.encoded.labels[1:])


@dataclass(frozen=True)
class Measure:
    """A metric. Its value is the weighted mean over the rows."""

    values: Callable[[MeasuredBatch], Sequence[float]]
    """The value of each row of a batch."""
    weight: Callable[[Example], int] = count_row
