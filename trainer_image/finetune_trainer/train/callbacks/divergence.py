# SPDX-License-Identifier: Apache-2.0
"""Ends a run whose loss is not finite or has diverged."""

import math

import torch
from typing_extensions import override

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.train.callbacks.state import Callback
from finetune_trainer.train.states.losses import HIGH_LOSS_FACTOR, MAX_HIGH_LOSS_STEPS


class Divergence(Callback):
    """Stops before a step with a loss or gradient that is not finite, and after a series of high losses."""

    @override
    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        loss_sum = self.run.figures.loss_sum
        if not math.isfinite(loss_sum):
            raise self.run.not_finite(step + 1, f"training loss is {loss_sum}")
        if not math.isfinite(self.run.trainer.gradient_norm()):
            raise self.run.not_finite(step + 1, "gradient is not finite")

    @override
    def end_step(self, step: int, epoch: float) -> None:
        run, losses = self.run, self.run.ledger.losses
        if not losses.diverged:
            return
        raise run.loss_failure(
            FailureReason.LOSS_DIVERGED,
            f"step {step}: the training loss is {run.figures.loss:.4g} {run.trainer.unit}, and has been above"
            f" {HIGH_LOSS_FACTOR} times its running median of {losses.median:.4g} for {MAX_HIGH_LOSS_STEPS}"
            f" steps in a row, at a learning rate of {run.learning_rate:.2e}",
        )
