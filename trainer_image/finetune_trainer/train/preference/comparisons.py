# SPDX-License-Identifier: Apache-2.0
"""Preference data in batches, each row with an answer to another prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset
from typing_extensions import override

from finetune_trainer.distributed.process_group import Group
from finetune_trainer.tokens.batching import row_lengths
from finetune_trainer.tokens.encoding import EncodedAnswers
from finetune_trainer.train.heldout import RowBatches
from finetune_trainer.train.parallel.sharding import Division, Steps

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


class ComparedSteps(Steps):
    """As `Steps`, with the row before each row in the order of the epoch, across all steps.

    So the comparisons depend neither on how a step is divided nor on the number of processes.
    """

    @override
    def __iter__(self) -> Iterator[list[list[Position]]]:
        (order,) = self.chunks(self._rows)
        before = dict(zip(order, [order[-1], *order[:-1]], strict=True))
        for batches in super().__iter__():
            yield [[(row, before.get(row, row)) for row in batch] for batch in batches]


def held_out_batches(
    rows: Sequence[EncodedAnswers], division: Division, seed: int, group: Group
) -> Sequence[list[ComparedRow]]:
    """This process's share of held-out rows, the longest first; read batch by batch."""
    (share,) = ComparedSteps(row_lengths(rows), len(rows), division, seed, group)
    return RowBatches(ComparedRows(rows), share)


def _blank(row: EncodedAnswers) -> ComparedRow:
    """A row of two tokens in each sequence: gradients exist, and are zero."""
    token = row.prompt[:1]
    return ComparedRow(EncodedAnswers(token, token, rejected=token, label=row.label), token, counts=False)
