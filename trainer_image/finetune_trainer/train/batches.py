# SPDX-License-Identifier: Apache-2.0
"""How the rows of optimizer steps become batches, shared among the processes of a run; held-out rows too.

However a step is divided, and with any number of processes, all processes together compute the same rows, so
they train the same weights. Held-out rows are read lazily: one batch at a time is on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from typing_extensions import override

from finetune_trainer.distributed.process_group import Group
from finetune_trainer.tokens.batching import longest_first
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps per epoch. The last step may have fewer rows."""
    return -(-rows // batch_size)


def run_steps(rows: int, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """Optimizer steps of a run, which ends after `epochs` or after `max_steps`, whichever comes first."""
    steps = epochs * steps_per_epoch(rows, batch_size)
    return steps if max_steps is None else min(steps, max_steps)


def rows_read(rows: int, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """Rows that a run reads in all of its steps, repeated ones included."""
    read = epochs * rows
    return read if max_steps is None else min(read, max_steps * batch_size)


def max_process_rows(batch_size: int, processes: int) -> int:
    """Max rows of a process in an optimizer step of `batch_size` rows."""
    return -(-batch_size // processes)


def batch_sizes(rows: int, processes: int, max_rows: int | None) -> list[int]:
    """Rows of each batch of an optimizer step, ascending, if process r computes every n-th batch from r on.

    There are as few batches as `max_rows` rows per batch allow. Their sizes differ by at most 1, and so do
    the numbers of rows per process. No batch is empty, so with fewer rows than processes some have none.
    """
    if not rows:
        return []
    of_process = max_process_rows(rows, processes)
    rounds = -(-of_process // (max_rows or of_process))
    small, larger = divmod(rows, count := min(rows, rounds * processes))
    return [small] * (count - larger) + [small + 1] * larger


def largest_batch(batch_size: int, processes: int, max_rows: int | None) -> int:
    """Rows of the largest batch of an optimizer step of `batch_size` rows."""
    return batch_sizes(batch_size, processes, max_rows)[-1]


Batch = dict[str, Any]
"""Inputs of a model: tensors, and a few numbers."""


class RowBatches(Sequence[list[Any]]):
    """The rows of batches, read when a batch is used."""

    def __init__(self, rows: Any, batches: Sequence[Sequence[int]]) -> None:
        """`batches` has what `rows` are indexed with."""
        self._rows = rows
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def numbers(self) -> list[int]:
        """The indices of the rows, in the order of the batches."""
        return [place for batch in self._batches for place in batch]

    @overload
    def __getitem__(self, index: int) -> list[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "RowBatches": ...

    @override
    def __getitem__(self, index: int | slice) -> "list[Any] | RowBatches":
        if isinstance(index, slice):
            return RowBatches(self._rows, self._batches[index])
        return [self._rows[row] for row in self._batches[index]]


class LazyBatches:
    """Batches that are collated and moved to the device when they are read."""

    def __init__(
        self, batches: Sequence[Sequence[Any]], collate: Callable[[Any], Batch], device: torch.device
    ) -> None:
        """`batches` has the rows of each batch."""
        self._batches = batches
        self._collate = collate
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def numbers(self) -> list[int]:
        """The indices of the rows, in the order of the batches."""
        return self._batches.numbers if isinstance(self._batches, RowBatches) else []

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._batches:
            yield to_device(self._collate(rows), self._device)


def to_device(value: Any, device: torch.device) -> Any:
    """Move tensors, also those in dicts and tuples; everything else stays."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: to_device(each, device) for name, each in value.items()}
    return tuple(to_device(each, device) for each in value) if isinstance(value, tuple) else value


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
