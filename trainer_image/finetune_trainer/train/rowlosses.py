# SPDX-License-Identifier: Apache-2.0
"""The validation loss by row, which the points of a learning curve are compared by."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from finetune_trainer.distributed.process_group import Group
from finetune_trainer.train.layout import ROW_LOSSES


class RowLosses(BaseModel):
    """Losses of all held-out rows, in the order of the rows."""

    sums: list[float]
    """Summed loss of each row, in nats; for preference methods its only loss."""
    weights: list[int]
    """Labelled tokens of each row; 1 for preference methods."""

    @classmethod
    def read(cls, folder: Path) -> "RowLosses":
        """Those saved with the best weights of a run in `folder`. Raises OSError, ValidationError."""
        return cls.model_validate_json((folder / ROW_LOSSES).read_bytes())

    @property
    def mean(self) -> float:
        """Mean loss in the trainer's unit."""
        return sum(self.sums) / sum(self.weights)


class RowLossCollector:
    """Collects the losses of this process's rows while it validates."""

    def __init__(self, numbers: Sequence[int], rows: int) -> None:
        """Expect the rows `numbers`, in this order; numbers from `rows` on are of rows that do not count."""
        self._numbers = numbers
        self._rows = rows
        self._sums: list[float] = []
        self._weights: list[int] = []

    def add(self, losses: Tensor, weights: Tensor) -> None:
        """Add the summed losses and the weights of the rows of the next batch, of shape (rows,)."""
        self._sums += losses.tolist()
        self._weights += weights.long().tolist()

    def gathered(self, group: Group) -> RowLosses:
        """The losses of the rows of all processes. Collective."""
        figures = [0.0] * (2 * self._rows)
        for number, loss, weight in zip(self._numbers, self._sums, self._weights, strict=True):
            if number < self._rows:
                figures[number], figures[self._rows + number] = loss, weight
        summed = group.all_reduce_sum(*figures)
        return RowLosses(sums=summed[: self._rows], weights=[int(each) for each in summed[self._rows :]])
