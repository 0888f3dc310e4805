"""Which rows each of several processes trains on, so that together they make the steps of one process."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from typing_extensions import override

from finetune_trainer.distributed.group import Group
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow


def blank_row(row: EncodedRow) -> EncodedRow:
    """A row of one token of which nothing is learned, for a process that has no row where others have one."""
    return EncodedRow(input_ids=row.input_ids[:1], labels=[IGNORE_INDEX])


class ShardedBatches(Sampler[list[int]]):
    """Every `size`-th batch of the order in which one process reads the rows.

    That is transformers' order: shuffled anew each epoch, by the seed plus the epoch's number. An optimizer
    step of all processes has the rows that a step of one process has which accumulates `size` times as many
    batches. Where the last step has too few batches for all, a process gets the row number `rows`.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, group: Group) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._group = group
        self._epoch = 0

    @property
    def batch_sampler(self) -> "ShardedBatches":
        """Where the Trainer looks for a sampler that takes the epoch's number."""
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
        batches = [order[at : at + self._batch_size] for at in range(0, self._rows, self._batch_size)]
        yield from self._group.share(batches, [self._rows])
