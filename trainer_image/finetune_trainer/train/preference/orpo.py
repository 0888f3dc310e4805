# SPDX-License-Identifier: Apache-2.0
"""Odds Ratio Preference Optimization."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from finetune_trainer.tokens.batching import ROW_LABELS
from finetune_trainer.tokens.encoding import EncodedRow
from finetune_trainer.train.preference.preference_loss import (
    Batch,
    ComparedRow,
    PreferenceLoss,
    ScoredModel,
    Totals,
    pair_reward_sums,
)


@dataclass(frozen=True)
class PairLikelihoods:
    """Mean log-likelihoods per token of the two answers of each pair, of shape (rows,)."""

    chosen: Tensor
    rejected: Tensor
    sequence: Tensor
    """Log-likelihood of the prompt with the chosen answer."""
    counts: Tensor


class ORPO(PreferenceLoss[PairLikelihoods]):
    """Odds Ratio Preference Optimization (Hong et al., 2024), equations 4 to 7; needs no reference model.

    As in TRL and in the paper's own code, the loss of the chosen answer is that of its prompt too. All tokens
    of a step have equal weight in it.
    """

    objective = "ORPO"
    has_reference = False

    @override
    def collate(self, rows: Sequence[ComparedRow]) -> Batch:
        prompts = [max(0, min(len(each.row.prompt), self._max_length) - 1) for each in rows]
        return super().collate(rows) | {"prompt_targets": torch.tensor(prompts)}

    @override
    def _sequences(self, compared: ComparedRow) -> tuple[EncodedRow, EncodedRow]:
        row = compared.row
        chosen = [*row.prompt, *row.answer]
        return EncodedRow(chosen, chosen), row.row(row.rejected or [])

    @override
    def totals(self, model: ScoredModel, batch: Batch) -> Totals:
        (pairs,) = batch["parts"]
        tokens, _ = pairs[ROW_LABELS].chunk(2)
        counts = batch["counts"]
        return Totals(rows=int(counts.sum()), tokens=int((tokens * counts).sum()))

    @override
    def scores(self, model: ScoredModel, batch: Batch) -> PairLikelihoods:
        prompts = batch["prompt_targets"]
        (pairs,) = batch["parts"]
        chosen_targets, rejected_targets = pairs[ROW_LABELS].chunk(2)
        answers = chosen_targets - prompts
        # The chosen sequences come first, each as its prompt and its answer.
        segments = torch.cat([torch.stack([prompts, answers], dim=1).flatten(), rejected_targets])
        sums = model.segment_sums(pairs, segments)
        of_prompt, chosen = sums[: 2 * len(prompts)].reshape(-1, 2).unbind(dim=1)
        rejected = sums[2 * len(prompts) :]
        return PairLikelihoods(
            chosen / answers, rejected / rejected_targets, of_prompt + chosen, batch["counts"]
        )

    @override
    def row_losses(self, scores: PairLikelihoods, totals: Totals) -> Tensor:
        log_odds = _log_odds(scores.chosen) - _log_odds(scores.rejected)
        losses = -scores.sequence * (totals.rows / totals.tokens) - self._beta * logsigmoid(log_odds)
        return losses * scores.counts

    @override
    def reward_sums(self, scores: PairLikelihoods) -> Tensor:
        return pair_reward_sums(self._beta * scores.chosen, self._beta * scores.rejected, scores.counts)


def _log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(`log_probability`)."""
    return log_probability - torch.log(-torch.expm1(log_probability))
