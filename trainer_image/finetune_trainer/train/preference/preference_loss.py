# SPDX-License-Identifier: Apache-2.0
"""What the losses of DPO, KTO and ORPO have in common: compared rows, the scored model, the base class.

A loss is a mean over rows. The loss of an optimizer step is the one that TRL computes for a single batch of
all rows of the step. It depends neither on the size of its batches nor on the number of processes. Each row
of a batch also has an answer to another prompt.

What the reference model says about a row is part of the row (`train.preference.reference`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from finetune_trainer.contract.method import Objective, Preference
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.model.completion_loss import ChunkedHead, segment_loss_sums
from finetune_trainer.tokens.batching import ROW_LABELS, Collate, collate_with_row_labels
from finetune_trainer.tokens.encoding import EncodedAnswers, EncodedRow
from finetune_trainer.train.batches import ShuffledRows, to_device
from finetune_trainer.train.model_setup import Trainable


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One row of a batch."""

    row: EncodedAnswers
    other: list[int]
    """Answer of another row, which KTO estimates the KL term with."""
    reference: Tensor
    """Log-likelihoods of its two sequences under the reference model, of shape (2,), in nats."""
    counts: bool = True
    """Whether the row has a loss. False for the row of a process that has none in the last step."""


class ComparedRows(Dataset[ComparedRow]):
    """All rows, each with the one before it in the first epoch; a row that does not count follows the last.

    So the comparisons depend neither on how a step is divided nor on the number of processes, and as in TRL
    they are the same in each epoch.
    """

    def __init__(self, rows: Sequence[EncodedAnswers], seed: int) -> None:
        self._rows = rows
        (self.order,) = ShuffledRows(len(rows), seed).chunks(len(rows))
        self._before = dict(zip(self.order, [self.order[-1], *self.order[:-1]], strict=True))
        self.reference = torch.zeros(len(rows), 2)
        """Log-likelihoods of the sequences of each row under the reference model, in nats."""

    @override
    def __getitem__(self, index: int) -> ComparedRow:
        if index == len(self._rows):
            return _blank(self._rows[0])
        return ComparedRow(self._rows[index], self._rows[self._before[index]].answer, self.reference[index])


def _blank(row: EncodedAnswers) -> ComparedRow:
    """A row of two tokens in each sequence: gradients exist, and are zero."""
    token = row.prompt[:1]
    answers = EncodedAnswers(token, token, rejected=token, label=row.label)
    return ComparedRow(answers, token, torch.zeros(2), counts=False)


@dataclass(frozen=True)
class ScoredModel:
    """Computes log-likelihoods of labelled tokens, in nats and in float32."""

    trained: Trainable
    head: ChunkedHead | None
    wrapped: nn.Module
    """The trained model, or the module that also exchanges its gradients with other processes."""

    @classmethod
    def of(cls, model: Trainable, head: ChunkedHead | None) -> "ScoredModel":
        """Prepare a model."""
        _disable_dropout(model)
        return cls(model, head, model)

    def wrapped_by(self, module: nn.Module) -> "ScoredModel":
        """The same model, computed through `module`."""
        return replace(self, wrapped=module)

    def segment_sums(self, sequences: Mapping[str, Any], segments: Tensor) -> Tensor:
        """Log-likelihoods of consecutive runs of labelled tokens, of shape (segments,)."""
        return -segment_loss_sums(self.wrapped, sequences, segments, self.head)

    def log_likelihoods(self, sequences: Mapping[str, Any]) -> Tensor:
        """Log-likelihood of the labelled tokens of each sequence, of shape (sequences,)."""
        return self.segment_sums(sequences, sequences[ROW_LABELS])

    def log_likelihoods_on_device(self, sequences: Mapping[str, Any]) -> Tensor:
        """As `log_likelihoods`, without gradients, for sequences on any device."""
        with torch.no_grad():
            here = to_device(sequences, self.trained.device)
            return self.wrapped_by(self.trained).log_likelihoods(here)


def _disable_dropout(model: nn.Module) -> None:
    """Compare two models by their weights alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


Batch = dict[str, Any]
"""Rows of a step.

- `parts`: the sequences that a model computes together, with their `ROW_LABELS`. There are two sequences per
  row, and all first ones come before all second ones.
- `reference`: their log-likelihoods under the reference model, in nats, of shape (2, rows).
- `counts`: which rows have a loss, of shape (rows,).
"""
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
    has_reference: ClassVar[bool] = True
    """Whether the loss compares the model with the one that training starts from."""

    def __init__(self, preference: Preference, collate: Collate, max_length: int) -> None:
        """`collate` makes the tensors of sequences of at most `max_length` tokens."""
        self._beta = preference.beta
        self._collate_rows = collate
        self._max_length = max_length

    def collate(self, rows: Sequence[ComparedRow]) -> Batch:
        """Make a batch."""
        first, second = zip(*map(self.sequences, rows), strict=True)
        return {
            "parts": tuple(
                collate_with_row_labels(part, self._collate_rows) for part in self._parts(first, second)
            ),
            "reference": torch.stack([each.reference for each in rows], dim=1),
            "counts": torch.tensor([each.counts for each in rows]),
        }

    def _parts(
        self, first: Sequence[EncodedRow], second: Sequence[EncodedRow]
    ) -> tuple[Sequence[EncodedRow], ...]:
        """The sequences that are computed together."""
        return ([*first, *second],)

    def sequences(self, compared: ComparedRow) -> tuple[EncodedRow, EncodedRow]:
        """The two sequences of a row."""
        first, second = self._sequences(compared)
        return first.truncate(self._max_length), second.truncate(self._max_length)

    @abstractmethod
    def _sequences(self, compared: ComparedRow) -> tuple[EncodedRow, EncodedRow]:
        """The two sequences of a row, of any length."""

    @abstractmethod
    def totals(self, model: ScoredModel, batch: Batch) -> Totals:
        """Compute the part of a batch in the totals, without gradients. `batch` is on any device."""

    @abstractmethod
    def scores(self, model: ScoredModel, batch: Batch) -> ScoresT:
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
