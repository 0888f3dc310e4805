# SPDX-License-Identifier: Apache-2.0
"""Preference data in batches, each row with an answer to another prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset
from typing_extensions import override

from finetune_trainer.distributed.group import Group
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.tokens.batching import row_lengths
from finetune_trainer.train.heldout import RowBatches
from finetune_trainer.train.parallel.sharding import GroupBatches

Position = tuple[int, int]
"""Index of a row, and of the row whose answer it is compared with."""


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One row of a batch."""

    row: EncodedAnswers
    other: list[int]
    """Answer of another row, which KTO estimates the KL term with."""
    counts: bool = True
    """Whether the row has a loss. False for the row of a process that has none in the last step."""


class ComparedRows(Dataset[ComparedRow]):
    """All rows by their positions; a row that does not count follows the last one."""

    def __init__(self, rows: Sequence[EncodedAnswers]) -> None:
        self._rows = rows

    @override
    def __getitem__(self, position: Position) -> ComparedRow:
        index, other = position
        if index == len(self._rows):
            return _blank(self._rows[0])
        return ComparedRow(self._rows[index], self._rows[other].answer)


class ComparedBatches(GroupBatches):
    """As `ShardedBatches`, with the row before each row in the order of the epoch, across all batches.

    So the comparisons depend neither on the size of a batch nor on the number of processes.
    """

    @override
    def __iter__(self) -> Iterator[list[Position]]:
        yield from self.shared(self.positions())

    def positions(self) -> list[Position]:
        """All rows in the order of the epoch."""
        (order,) = self.chunks(self._rows)
        return list(zip(order, [order[-1], *order[:-1]], strict=True))

    def shared(self, positions: Sequence[Position]) -> Sequence[list[Position]]:
        """This process's batches of `positions`."""
        size = self._batch_size
        batches = [list(positions[start : start + size]) for start in range(0, len(positions), size)]
        return self._group.share(batches, [(self._rows, self._rows)])


def held_out_batches(
    rows: Sequence[EncodedAnswers], batch_size: int, seed: int, group: Group
) -> Sequence[list[ComparedRow]]:
    """This process's share of held-out rows, those with the longest rows first; read batch by batch."""
    batches, lengths = ComparedBatches(len(rows), batch_size, seed, group), row_lengths(rows)
    longest_first = sorted(batches.positions(), key=lambda position: -lengths[position[0]])
    return RowBatches(ComparedRows(rows), batches.shared(longest_first))


def _blank(row: EncodedAnswers) -> ComparedRow:
    """A row of two tokens in each sequence: gradients exist, and are zero."""
    token = row.prompt[:1]
    return ComparedRow(EncodedAnswers(token, token, rejected=token, label=row.label), token, counts=False)
