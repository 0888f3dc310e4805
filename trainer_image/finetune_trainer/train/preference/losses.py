# SPDX-License-Identifier: Apache-2.0
"""What DPO, KTO and ORPO have in common: a loss that is a mean over rows, however they are split.

The loss of an optimizer step is the one that TRL computes for a single batch of all rows of the step. It
depends neither on the size of its batches nor on the number of processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from finetune_trainer.contract.method import Objective, Preference
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.tokens.batching import Padding
from finetune_trainer.tokens.encoding import EncodedRow
from finetune_trainer.train.preference.comparisons import ComparedRow
from finetune_trainer.train.preference.referencedmodel import ReferencedModel

Batch = dict[str, Tensor]
"""Two sequences per row, all first ones before all second ones: `input_ids`, `attention_mask` and `labels`,
of shape (sequences, tokens). `counts` says which rows have a loss, of shape (rows,)."""
ScoresT = TypeVar("ScoresT")


@dataclass(frozen=True)
class Totals:
    """Sums over all rows of an optimizer step, or over all held-out rows."""

    rows: float = 0
    tokens: float = 0
    """Tokens of the chosen sequences that a model predicts, for ORPO."""
    divergence: float = 0
    """Log-likelihood ratios of answers to other prompts, in nats, for KTO."""

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.rows + other.rows, self.tokens + other.tokens, self.divergence + other.divergence)

    def all_reduced(self, group: Group) -> "Totals":
        """Sum over all processes. Collective."""
        return Totals(*group.all_reduce_sum(self.rows, self.tokens, self.divergence))


class PreferenceLoss(ABC, Generic[ScoresT]):
    """The loss of an objective, in two parts: what a model says about a batch, and the loss of that."""

    objective: ClassVar[Objective]

    def __init__(self, preference: Preference, pad_token_id: int, max_length: int) -> None:
        self._beta = preference.beta
        self._pad = Padding(pad_token_id)
        self._max_length = max_length

    def collate(self, rows: Sequence[ComparedRow]) -> Batch:
        """Make a batch."""
        first, second = zip(*(self._sequences(each) for each in rows), strict=True)
        padded = self._pad([row.truncate(self._max_length) for row in (*first, *second)])
        return padded | {"counts": torch.tensor([each.counts for each in rows])}

    @abstractmethod
    def _sequences(self, compared: ComparedRow) -> tuple[EncodedRow, EncodedRow]:
        """The two sequences of a row."""

    @abstractmethod
    def totals(self, model: ReferencedModel, batch: Batch) -> Totals:
        """Compute the part of a batch in the totals, without gradients. `batch` is on any device."""

    @abstractmethod
    def scores(self, model: ReferencedModel, batch: Batch) -> ScoresT:
        """Compute what the loss compares, with gradients."""

    @abstractmethod
    def row_losses(self, scores: ScoresT, totals: Totals) -> Tensor:
        """The loss of each row of a batch, of shape (rows,); 0 for rows that do not count."""

    def loss_sum(self, scores: ScoresT, totals: Totals) -> Tensor:
        """The summed loss of the rows of a batch. Divided by `totals.rows`, those of all batches add up to
        the mean loss."""
        return self.row_losses(scores, totals).sum()

    @abstractmethod
    def reward_sums(self, scores: ScoresT) -> Tensor:
        """The fields of RewardSums for the rows of a batch, of shape (fields,)."""


def pair_reward_sums(chosen: Tensor, rejected: Tensor, counts: Tensor) -> Tensor:
    """The fields of RewardSums for pairs with these rewards, of shape (rows,)."""
    rows = counts.sum()
    right = ((chosen > rejected) & counts).sum()
    sums = ((chosen * counts).sum(), rows, (rejected * counts).sum(), rows, right, rows)
    return torch.stack([each.detach().double() for each in sums])
