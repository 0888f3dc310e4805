# SPDX-License-Identifier: Apache-2.0
"""The state that the callbacks of a run share, and their base class."""

from dataclasses import dataclass, field

import torch

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.stepwatchdog import StepWatchdog
from finetune_trainer.train.protocol import TrainerProtocol
from finetune_trainer.train.states.ledger import RunLedger
from finetune_trainer.train.states.restarts import WastedTime
from finetune_trainer.train.states.resume import ResumeStates
from finetune_trainer.train.states.retention import Retention
from finetune_trainer.train.states.weights import TrainingWeights
from finetune_trainer.train.throughput import StepFigures
from finetune_trainer.train.trainingmetrics import TrainingMetrics


class StoppedEarly(Exception):
    """The validation loss did not improve in `early_stopping_patience` validations; the state is saved."""


@dataclass
class RunState:
    """A run in training: its parts and its position."""

    context: StageContext
    hyperparameters: Hyperparameters
    steps_per_epoch: int
    device: torch.device
    trainer: TrainerProtocol
    weights: TrainingWeights
    states: ResumeStates
    ledger: RunLedger
    retention: Retention
    wasted_time: WastedTime
    watchdog: StepWatchdog
    metrics: TrainingMetrics
    learning_rate: float = field(init=False, default=0.0)
    """Learning rate of the last optimizer step."""
    figures: StepFigures = field(init=False)
    """Figures of the last optimizer step, over all processes."""

    def record_batch(self, step: int) -> None:
        """Record that a batch is finished after the optimizer step `step`."""
        self.watchdog.feed(step)
        self.wasted_time.update()

    def stopping(self) -> bool:
        """Whether a signal stopped any process; then all stop after the same step. Collective."""
        return self.context.group.any(self.context.stop.is_set())

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last of an epoch."""
        return step > 0 and step % self.steps_per_epoch == 0

    @property
    def validation_interval(self) -> int:
        """Optimizer steps between two validations."""
        return self.hyperparameters.validate_every_steps or self.steps_per_epoch

    def validates(self, step: int) -> bool:
        """Whether a validation follows `step`; one follows the last step."""
        is_last = step == self.hyperparameters.total_steps
        return step > 0 and (is_last or step % self.validation_interval == 0)

    def out_of_patience(self, step: int) -> bool:
        """Whether early stopping ends the run after this step."""
        patience = self.hyperparameters.early_stopping_patience
        if patience is None or step == self.hyperparameters.total_steps:
            return False
        return self.ledger.steps_since_best >= patience * self.validation_interval

    def loss_failure(self, reason: FailureReason, problem: str) -> StageFailure:
        """Create the failure of a run whose loss is not usable; `problem` is a clause."""
        return StageFailure(
            reason,
            f"{problem}. Create a new run with a hyperparameters.learningRate below"
            f" {self.hyperparameters.learning_rate:g}, and look for rows of extreme length or content. The"
            f" last good state is {self.states.last_good(self.ledger)}",
        )

    def not_finite(self, step: int, problem: str) -> StageFailure:
        """Create the failure of a run with a figure that is not finite; `problem` is a clause."""
        return self.loss_failure(FailureReason.LOSS_NOT_FINITE, f"step {step}: the {problem}")


class Callback:
    """Called around each optimizer step; `step` is the number of finished steps."""

    def __init__(self, run: RunState) -> None:
        self.run = run

    def begin(self, step: int, epoch: float) -> None:
        """Called before the first step of this process, after `step` steps of the run."""

    def begin_step(self) -> None:
        """Called before the first batch of a step."""

    def end_batch(self, step: int) -> None:
        """Called after a batch, if the step has further batches."""

    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called when all gradients of the next step are computed, before the weights change."""

    def end_step(self, step: int, epoch: float) -> None:
        """Called after the weights have changed."""
