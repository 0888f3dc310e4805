# SPDX-License-Identifier: Apache-2.0
"""Divides the rows of an optimizer step into batches, and shares these among processes.

All divisions of a step, and any number of processes, compute the same rows, so they train the same weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, overload

import torch
from torch.utils.data import Dataset, Sampler
from typing_extensions import override

from finetune_trainer.distributed.process_group import Group
from finetune_trainer.tokens.batching import longest_first
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow
from finetune_trainer.train.schedule import batch_sizes, steps_per_epoch


class Division(Protocol):
    """Divides the rows of a step into batches."""

    def split(self, lengths: Sequence[int], processes: int = 1) -> list[list[int]]:
        """The batches, as indices of rows with these lengths in tokens: each row once, no batch empty.

        If there are enough rows, the number of batches is a multiple of `processes`.
        """
        ...


@dataclass(frozen=True)
class RowLimit:
    """Batches of at most `max_rows` rows; None for one batch per process and step."""

    max_rows: int | None

    def split(self, lengths: Sequence[int], processes: int = 1) -> list[list[int]]:
        """Batches of nearly equally many rows of similar length; longest first, so memory runs out early."""
        order = iter(longest_first(lengths))
        sizes = batch_sizes(len(lengths), processes, self.max_rows)
        return [list(islice(order, size)) for size in sizes]


def share_batches(
    lengths: Sequence[int], rows: Sequence[int], division: Division, group: Group
) -> list[list[int]]:
    """This process's batches of `rows`, as many as every other process has.

    Process r of n gets every n-th batch from the r-th on. If there are too few batches, it gets a blank row,
    whose index is the number of all rows.

    Args:
        lengths: tokens of each of all rows.
        rows: indices of the rows of one step.
        division: how they become batches.
        group: the processes.
    """
    batches = division.split([int(lengths[row]) for row in rows], group.size)
    return group.share([[rows[at] for at in batch] for batch in batches], [len(lengths)])


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


class Steps(ShuffledRows):
    """The batches of this process in each optimizer step of an epoch.

    A step of all processes has the rows of a step of a single process, in the same order.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, division: Division, seed: int, group: Group
    ) -> None:
        """`lengths` are those of all rows, in tokens; `batch_size` is the number of rows of a step."""
        super().__init__(len(lengths), seed)
        self._lengths = lengths
        self._batch_size = batch_size
        self._division = division
        self._group = group

    def __len__(self) -> int:
        return steps_per_epoch(self._rows, self._batch_size)

    @override
    def __iter__(self) -> Iterator[list[list[Any]]]:
        for rows in self.chunks(self._batch_size):
            yield share_batches(self._lengths, rows, self._division, self._group)


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

    def __init__(self, rows: Any, collate: Callable[[Any], dict[str, Any]]) -> None:
        """`rows` are indexed with what a batch lists."""
        self._rows = rows
        self._collate = collate

    @override
    def __getitem__(self, batch: Sequence[Any]) -> dict[str, Any]:
        return self._collate([self._rows[place] for place in batch])
