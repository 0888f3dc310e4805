"""Preference data in batches, each row with an answer to another prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from torch.utils.data import Dataset
from typing_extensions import override

from finetune_trainer.distributed.group import Group
from finetune_trainer.tokens.answers import EncodedAnswers
from finetune_trainer.tokens.batching import row_lengths
from finetune_trainer.train.heldout import RowBatches
from finetune_trainer.train.parallel.sharding import ShuffledRows

Position = tuple[int, int]
"""Index of a row, and of the row whose answer it is compared with."""
FIRST_EPOCH: Final = 0


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


class ComparedBatches(ShuffledRows):
    """As `ShardedBatches`, with the row before each row in the order of the epoch, across all batches.

    So the comparisons depend neither on the size of a batch nor on the number of processes.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, group: Group) -> None:
        super().__init__(rows, seed)
        self._batch_size = batch_size
        self._group = group

    def __len__(self) -> int:
        return len(self._group.share(range(0, self._rows, self._batch_size), 0))

    @override
    def __iter__(self) -> Iterator[list[Position]]:
        positions = self._positions()
        batches = [
            positions[start : start + self._batch_size] for start in range(0, self._rows, self._batch_size)
        ]
        yield from self._group.share(batches, [(self._rows, self._rows)])

    def _positions(self) -> list[Position]:
        (order,) = self.chunks(self._rows)
        return list(zip(order, [order[-1], *order[:-1]], strict=True))


def held_out_batches(
    rows: Sequence[EncodedAnswers], batch_size: int, seed: int, group: Group
) -> Sequence[list[ComparedRow]]:
    """This process's share of held-out rows, those with the longest rows first; read batch by batch."""
    whole = ComparedBatches(len(rows), len(rows), seed, Group())
    whole.set_epoch(FIRST_EPOCH)
    lengths = row_lengths(rows)
    positions = sorted(
        (position for batch in whole for position in batch), key=lambda position: -lengths[position[0]]
    )
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return RowBatches(ComparedRows(rows), group.share(batches, [(len(rows), len(rows))]))


def _blank(row: EncodedAnswers) -> ComparedRow:
    """A row of two tokens in each sequence: gradients exist, and are zero."""
    token = row.prompt[:1]
    return ComparedRow(EncodedAnswers(token, token, rejected=token, label=row.label), token, counts=False)
