# SPDX-License-Identifier: Apache-2.0
"""Nested subsets of the training rows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, overload

import numpy as np
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.tokens.batching import row_lengths
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.schedule import rows_read, steps_per_epoch

SEED_OFFSET: Final = 0x5EED
"""Added to the run's seed, so that the choice of rows is independent of their order in an epoch."""


class RowSubset(Sequence[Any]):
    """Rows chosen by their indices, read when they are used."""

    def __init__(self, rows: Sequence[Any], indices: Sequence[int]) -> None:
        self._rows = rows
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> "RowSubset": ...

    @override
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return RowSubset(self._rows, self._indices[index])
        return self._rows[self._indices[index]]

    @property
    def lengths(self) -> Sequence[int]:
        """Number of tokens of each row."""
        known = row_lengths(self._rows)
        return [int(known[index]) for index in self._indices]


def subset_size(rows: int, share: float) -> int:
    """Number of rows of a subset, at least 1."""
    return max(1, math.ceil(share * rows))


def share_of_work(subset_rows: int, rows: int, used: Hyperparameters) -> float:
    """Rows that a training on a subset reads, relative to those that the run reads."""
    of_subset, of_run = (
        rows_read(each, used.batch_size, used.epochs, used.max_steps) for each in (subset_rows, rows)
    )
    return of_subset / of_run


def subset_indices(rows: int, share: float, seed: int) -> list[int]:
    """Indices of the rows of a subset, ascending. A larger share has the rows of a smaller one."""
    order = np.random.default_rng(seed + SEED_OFFSET).permutation(rows)
    chosen: list[int] = np.sort(order[: subset_size(rows, share)]).tolist()
    return chosen


def subset_data(data: TrainingData, hyperparameters: Hyperparameters, share: float) -> TrainingData:
    """The inputs of a training on a share of the rows; `hyperparameters` are those of that training."""
    rows = RowSubset(data.rows, subset_indices(len(data.rows), share, hyperparameters.seed))
    return replace(
        data,
        rows=rows,
        max_row_tokens=max(rows.lengths),
        steps_per_epoch=steps_per_epoch(len(rows), hyperparameters.batch_size),
    )
