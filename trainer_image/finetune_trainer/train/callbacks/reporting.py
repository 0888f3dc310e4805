# SPDX-License-Identifier: Apache-2.0
"""Reports the figures of each step to the ledger, the operator, Prometheus and the log."""

import logging
from typing import Final

import torch
from typing_extensions import override

from finetune_trainer.contract.progress import Progress
from finetune_trainer.model.device import peak_memory
from finetune_trainer.runtime.progressmeter import Interval
from finetune_trainer.train.callbacks.state import Callback, RunState
from finetune_trainer.train.rewards import describe_rewards
from finetune_trainer.train.throughput import Throughput

LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class Reporting(Callback):
    """Counts each step; logs a step every few seconds, and the last one."""

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._throughput = Throughput(run.hyperparameters.total_steps)
        self._log = Interval(LOG_SECONDS, due=True)

    @override
    def begin_step(self) -> None:
        self._throughput.begin_step()

    @override
    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Sum the figures over all processes, and read the learning rate before the scheduler changes it."""
        self.run.figures = self.run.trainer.take_step().all_reduced(self.run.context.group)
        self.run.learning_rate = float(optimizer.param_groups[0]["lr"])

    @override
    def end_step(self, step: int, epoch: float) -> None:
        run = self.run
        run.ledger.add_step(run.figures)
        self._throughput.end_step(run.figures)
        progress = self._throughput.progress(step, epoch, run.learning_rate).model_copy(
            update={
                "validation_loss": run.ledger.validation_loss,
                "device_memory_bytes": peak_memory(run.device),
            }
        )
        run.context.reporter.progress(progress)
        run.metrics.show(progress)
        if self._log.passed() or progress.step == progress.total_steps:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        logger.info(
            "step %d of %d, epoch %.2f, loss %.4f%s, learning rate %.2e, %.0f tokens/s, %.0f s left",
            progress.step,
            progress.total_steps,
            progress.epoch,
            progress.loss,
            describe_rewards(self._throughput.rewards),
            progress.learning_rate,
            progress.tokens_per_second,
            progress.eta_seconds,
        )
