"""Ends a run whose loss is not finite or has diverged."""

import math

import torch
from torch.distributed.tensor import DTensor
from typing_extensions import override

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.train.callbacks.state import Callback
from finetune_trainer.train.states.losses import HIGH_LOSS_FACTOR, MAX_HIGH_LOSS_STEPS


class Divergence(Callback):
    """Stops before a step with a loss or gradient that is not finite, and after a series of high losses."""

    @override
    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        (loss_sum,) = self.run.context.group.all_reduce_sum(self.run.trainer.loss_sum)
        if not math.isfinite(loss_sum):
            raise self.run.not_finite(step + 1, f"training loss is {loss_sum}")
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not torch.isfinite(norm):
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
