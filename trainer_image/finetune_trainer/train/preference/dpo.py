# SPDX-License-Identifier: Apache-2.0
"""Direct Preference Optimization."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

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
class PairRatios:
    """Log-likelihood ratios of the two answers of each pair, of shape (rows,)."""

    chosen: Tensor
    rejected: Tensor
    counts: Tensor


class DPO(PreferenceLoss[PairRatios]):
    """Direct Preference Optimization (Rafailov et al., 2023), equation 7."""

    objective = "DPO"

    @override
    def _sequences(self, compared: ComparedRow) -> tuple[EncodedRow, EncodedRow]:
        row = compared.row
        return row.row(row.answer), row.row(row.rejected or [])

    @override
    def totals(self, model: ScoredModel, batch: Batch) -> Totals:
        return Totals(rows=int(batch["counts"].sum()))

    @override
    def scores(self, model: ScoredModel, batch: Batch) -> PairRatios:
        (pairs,) = batch["parts"]
        chosen, rejected = model.log_likelihoods(pairs).reshape(2, -1) - batch["reference"]
        return PairRatios(chosen, rejected, batch["counts"])

    @override
    def row_losses(self, scores: PairRatios, totals: Totals) -> Tensor:
        losses = -logsigmoid(self._beta * (scores.chosen - scores.rejected))
        return losses * scores.counts

    @override
    def reward_sums(self, scores: PairRatios) -> Tensor:
        return pair_reward_sums(self._beta * scores.chosen, self._beta * scores.rejected, scores.counts)
