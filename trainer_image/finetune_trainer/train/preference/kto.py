# SPDX-License-Identifier: Apache-2.0
"""Kahneman-Tversky Optimization."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from finetune_trainer.contract.method import Preference
from finetune_trainer.tokens.batching import Collate
from finetune_trainer.tokens.encoding import EncodedRow
from finetune_trainer.train.preference.preference_loss import (
    Batch,
    ComparedRow,
    PreferenceLoss,
    ScoredModel,
    Totals,
)


@dataclass(frozen=True)
class AnswerRatios:
    """Log-likelihood ratio of the answer of each row, of shape (rows,)."""

    answer: Tensor
    desirable: Tensor
    counts: Tensor


class KTO(PreferenceLoss[AnswerRatios]):
    """Kahneman-Tversky Optimization (Ethayarajh et al., 2024), equations 7 and 8.

    The second sequence of a row is its prompt with the answer of another row. The mean log-likelihood ratio
    of these sequences in all rows of a step, at least 0, estimates the KL term.
    """

    objective = "KTO"

    def __init__(self, preference: Preference, collate: Collate, max_length: int) -> None:
        super().__init__(preference, collate, max_length)
        self._desirable_weight = preference.desirable_weight or 1
        self._undesirable_weight = preference.undesirable_weight or 1

    @override
    def collate(self, rows: Sequence[ComparedRow]) -> Batch:
        return super().collate(rows) | {"desirable": torch.tensor([each.row.label for each in rows])}

    @override
    def _parts(
        self, first: Sequence[EncodedRow], second: Sequence[EncodedRow]
    ) -> tuple[Sequence[EncodedRow], ...]:
        """The second sequences have no gradients, and are computed before the step."""
        return first, second

    @override
    def _sequences(self, compared: ComparedRow) -> tuple[EncodedRow, EncodedRow]:
        row = compared.row
        return row.row(row.answer), row.row(compared.other)

    @override
    def totals(self, model: ScoredModel, batch: Batch) -> Totals:
        _, others = batch["parts"]
        likelihoods = model.log_likelihoods_on_device(others)
        _, reference = batch["reference"].to(likelihoods.device)
        divergence = ((likelihoods - reference) * batch["counts"].to(likelihoods.device)).sum()
        return Totals(rows=int(batch["counts"].sum()), divergence=float(divergence))

    @override
    def scores(self, model: ScoredModel, batch: Batch) -> AnswerRatios:
        answers, _ = batch["parts"]
        reference, _ = batch["reference"]
        return AnswerRatios(model.log_likelihoods(answers) - reference, batch["desirable"], batch["counts"])

    @override
    def row_losses(self, scores: AnswerRatios, totals: Totals) -> Tensor:
        divergence = max(0.0, totals.divergence / totals.rows)
        sign = torch.where(scores.desirable, 1.0, -1.0)
        weight = torch.where(scores.desirable, self._desirable_weight, self._undesirable_weight)
        losses = weight * (1 - torch.sigmoid(sign * self._beta * (scores.answer - divergence)))
        return losses * scores.counts

    @override
    def reward_sums(self, scores: AnswerRatios) -> Tensor:
        rewards = self._beta * scores.answer
        good, bad = scores.desirable & scores.counts, ~scores.desirable & scores.counts
        no_pairs = torch.zeros((), device=rewards.device)
        sums = ((rewards * good).sum(), good.sum(), (rewards * bad).sum(), bad.sum(), no_pairs, no_pairs)
        return torch.stack([each.detach().double() for each in sums])
