# SPDX-License-Identifier: Apache-2.0
"""Shards the batches of a step across processes, so that together they make the steps of one process."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch.utils.data import Dataset, Sampler
from typing_extensions import override

from finetune_trainer.distributed.group import Group
from finetune_trainer.tokens.batching import Collate, TokenBudget
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow


def blank_row(row: EncodedRow) -> EncodedRow:
    """A row of one unlabelled token, for a process without a row in a step where other processes have one."""
    return EncodedRow(input_ids=row.input_ids[:1], labels=[IGNORE_INDEX])


class ShuffledRows(Sampler[Any]):
    """Reads the rows in the order of transformers: shuffled in each epoch with the seed plus its number."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = 0

    @property
    def batch_sampler(self) -> "ShuffledRows":
        """The attribute in which the Trainer looks for a sampler with `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, counted from 0."""
        self._epoch = epoch

    def chunks(self, size: int) -> Iterator[list[int]]:
        """The rows of this epoch in lists of `size`; the last may be shorter."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator)
        for start in range(0, self._rows, size):
            chunk: list[int] = order[start : start + size].tolist()
            yield chunk


class GroupBatches(ShuffledRows):
    """Batches of equal numbers of rows, of which each process of a group gets every n-th."""

    def __init__(self, rows: int, batch_size: int, seed: int, group: Group) -> None:
        super().__init__(rows, seed)
        self._batch_size = batch_size
        self._group = group

    def __len__(self) -> int:
        return len(self._group.share(range(0, self._rows, self._batch_size), 0))


class ShardedBatches(GroupBatches):
    """Every `size`-th batch of the order in which a single process reads the rows.

    An optimizer step of all processes has the rows of a step of a single process that accumulates `size`
    times as many batches. If the last step has too few batches, a process gets the row with index `rows`.
    """

    @override
    def __iter__(self) -> Iterator[list[int]]:
        yield from self._group.share(list(self.chunks(self._batch_size)), [self._rows])


class BudgetedSteps(ShuffledRows):
    """The batches of this process in each optimizer step, by a token budget.

    A step has the same `step_rows` rows as without a budget, of all processes together. They are split into
    batches, and process r of n gets every n-th batch from the r-th largest on, so all processes compute
    equal numbers of batches of similar sizes. If there are too few batches, a process gets the row with index
    `rows`.
    """

    def __init__(
        self, lengths: Sequence[int], step_rows: int, budget: TokenBudget, seed: int, group: Group
    ) -> None:
        """`lengths` are those of all rows, in tokens."""
        super().__init__(len(lengths), seed)
        self._lengths = lengths
        self._step_rows = step_rows
        self._budget = budget
        self._group = group

    def __len__(self) -> int:
        return len(range(0, self._rows, self._step_rows))

    @override
    def __iter__(self) -> Iterator[list[list[int]]]:
        for rows in self.chunks(self._step_rows):
            batches = self._budget.split([int(self._lengths[row]) for row in rows], self._group.size)
            yield self._group.share([[rows[at] for at in batch] for batch in batches], [self._rows])


class RowsWithBlank(Sequence[EncodedRow]):
    """The rows, and a blank one after the last."""

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) + 1

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EncodedRow]: ...

    @override
    def __getitem__(self, index: int | slice) -> EncodedRow | Sequence[EncodedRow]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return blank_row(self._rows[0]) if index == len(self._rows) else self._rows[index]


class CollatedBatches(Dataset[dict[str, Any]]):
    """A dataset whose items are whole batches: `batches[[3, 1]]` collates rows 3 and 1."""

    def __init__(self, rows: Sequence[EncodedRow], collate: Collate) -> None:
        self._rows = rows
        self._collate = collate

    @override
    def __getitem__(self, batch: Sequence[int]) -> dict[str, Any]:
        return self._collate([self._rows[index] for index in batch])
