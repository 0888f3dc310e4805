"""Shards the batches of a step across processes, so that together they make the steps of one process."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from typing_extensions import override

from finetune_trainer.distributed.group import Group
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow


def blank_row(row: EncodedRow) -> EncodedRow:
    """A row of one unlabelled token, for a process without a row in a step where other processes have one."""
    return EncodedRow(input_ids=row.input_ids[:1], labels=[IGNORE_INDEX])


class ShardedBatches(Sampler[list[int]]):
    """Every `size`-th batch of the order in which a single process reads the rows.

    The order is that of transformers: shuffled in each epoch with the seed plus the number of the epoch. An
    optimizer step of all processes has the rows of a step of a single process that accumulates `size` times
    as many batches. If the last step has too few batches, a process gets the row with index `rows`.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, group: Group) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._group = group
        self._epoch = 0

    @property
    def batch_sampler(self) -> "ShardedBatches":
        """The attribute in which the Trainer looks for a sampler with `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._group.share(range(0, self._rows, self._batch_size), 0))

    @override
    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order: list[int] = torch.randperm(self._rows, generator=generator).tolist()
        batches = [
            order[start : start + self._batch_size] for start in range(0, self._rows, self._batch_size)
        ]
        yield from self._group.share(batches, [self._rows])
