# SPDX-License-Identifier: Apache-2.0
"""What the losses of DPO, KTO and ORPO have in common: compared rows, the reference model, the base class.

A loss is a mean over rows. The loss of an optimizer step is the one that TRL computes for a single batch of
all rows of the step. It depends neither on the size of its batches nor on the number of processes. Each row
of a batch also has an answer to another prompt.

The reference model is the model that training starts from: the base model with its adapter disabled or, if
the run continues from a Checkpoint, a frozen copy of its adapter. It does not change in training and is not
part of a resume state, so an interrupted run resumes exactly. There is no second copy of the base model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Generic, TypeVar

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from finetune_trainer.contract.method import Objective, Preference
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.model.completion_loss import ChunkedHead, segment_loss_sums
from finetune_trainer.tokens.batching import Padding, row_lengths
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedAnswers, EncodedRow
from finetune_trainer.train.batches import Division, RowBatches, Steps

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


REFERENCE: Final = "reference"
"""Name of the copy of the adapter that training starts from."""
SEQUENCES: Final = ("input_ids", "attention_mask", "labels")
"""Inputs of shape (sequences, tokens)."""


@dataclass(frozen=True)
class ReferencedModel:
    """Computes log-likelihoods of labelled tokens, in nats and in float32."""

    adapted: PeftModel
    head: ChunkedHead | None
    wrapped: nn.Module
    """The adapted model, or the module that also exchanges its gradients with other processes."""

    @classmethod
    def of(cls, model: PeftModel, head: ChunkedHead | None, *, continues: bool) -> "ReferencedModel":
        """Prepare a model; `continues` says whether another run trained its adapter."""
        if continues:
            _keep_reference(model)
        _disable_dropout(model)
        return cls(model, head, model)

    def wrapped_by(self, module: nn.Module) -> "ReferencedModel":
        """The same model, computed through `module`."""
        return replace(self, wrapped=module)

    def on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device of the model."""
        return {name: value.to(self.adapted.device) for name, value in batch.items()}

    def segment_sums(self, batch: Mapping[str, Tensor], segments: Tensor) -> Tensor:
        """Log-likelihoods of consecutive runs of labelled tokens, of shape (segments,)."""
        return -segment_loss_sums(self.wrapped, sequences(batch), segments, self.head)

    def log_likelihoods(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-likelihood of the labelled tokens of each sequence, of shape (sequences,)."""
        return self.segment_sums(batch, label_counts(batch))

    def log_ratios(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-likelihood of each sequence minus that under the reference model, of shape (sequences,)."""
        with torch.no_grad(), self._as_reference():
            reference = self.wrapped_by(self.adapted).log_likelihoods(batch)
        return self.log_likelihoods(batch) - reference

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if REFERENCE not in self.adapted.peft_config:
            with self.adapted.disable_adapter():
                yield
            return
        trained = self.adapted.active_adapter
        self.adapted.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.adapted.set_adapter(trained)


def sequences(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sequences of a batch, without the figures of its rows."""
    return {name: batch[name] for name in SEQUENCES}


def split_pairs(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first and the second sequence of each row."""
    parts = {name: batch[name].chunk(2) for name in SEQUENCES}
    first, second = ({name: part[at] for name, part in parts.items()} for at in (0, 1))
    return first, second


def label_counts(batch: Mapping[str, Tensor]) -> Tensor:
    """Number of labelled tokens of each sequence that a model predicts, of shape (sequences,)."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)


def _disable_dropout(model: nn.Module) -> None:
    """Compare two models by their weights alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _keep_reference(model: PeftModel) -> None:
    """Copy the adapter of the model, under another name and frozen."""
    trained = model.active_adapter
    weights = get_peft_model_state_dict(model, adapter_name=trained)
    model.add_adapter(REFERENCE, model.peft_config[trained])
    set_peft_model_state_dict(model, weights, adapter_name=REFERENCE)
    model.set_adapter(trained)


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
