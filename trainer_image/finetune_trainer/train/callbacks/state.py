"""What the callbacks of a run share."""

from dataclasses import dataclass, field

import torch

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.train.guards.stepwatchdog import StepWatchdog
from finetune_trainer.train.metrics import TrainingMetrics
from finetune_trainer.train.protocol import TrainerProtocol
from finetune_trainer.train.states.attempts import WastedTime
from finetune_trainer.train.states.ledger import RunLedger
from finetune_trainer.train.states.resume import ResumeStates
from finetune_trainer.train.states.retention import Retention
from finetune_trainer.train.states.weights import TrainingWeights
from finetune_trainer.train.throughput import StepFigures


class StoppedEarly(Exception):
    """The validation loss has not become lower for as many epochs as were asked for; the state is saved."""


@dataclass
class RunState:
    """A run in training: its parts, and where it is."""

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
    """Of the last optimizer step."""
    figures: StepFigures = field(init=False)
    """Of the last optimizer step, of all processes."""

    def alive(self, step: int) -> None:
        """A batch is done; `step` is the last optimizer step that is."""
        self.watchdog.feed(step)
        self.wasted_time.update()

    def stopping(self) -> bool:
        """Whether any process was asked to stop; then all of them stop after the same step. Collective."""
        return self.context.group.any(self.context.stop.is_set())

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last of an epoch."""
        return step > 0 and step % self.steps_per_epoch == 0

    def out_of_patience(self, step: int) -> bool:
        """Whether the run is to end after this step although there are more."""
        patience = self.hyperparameters.early_stopping_patience
        if patience is None or step == self.hyperparameters.total_steps:
            return False
        return self.ledger.steps_since_best >= patience * self.steps_per_epoch

    def spoiled(self, reason: FailureReason, what: str) -> StageFailure:
        """The end of a run whose loss makes no sense any more; `what` is a clause."""
        return StageFailure(
            reason,
            f"{what}; make a new run with a hyperparameters.learningRate below"
            f" {self.hyperparameters.learning_rate:g}, and look for rows of extreme length or content. The"
            f" last good state is {self.states.last_good(self.ledger)}",
        )

    def not_finite(self, step: int, what: str) -> StageFailure:
        """The end of a run whose figure `what` is no number."""
        return self.spoiled(FailureReason.LOSS_NOT_FINITE, f"step {step}: the {what}")


class Callback:
    """Called around each optimizer step; steps are those that are done."""

    def __init__(self, run: RunState) -> None:
        self.run = run

    def begin(self, step: int, epoch: float) -> None:
        """Before the first step of this process, after `step` of the run."""

    def begin_step(self) -> None:
        """Before the first batch of a step."""

    def end_batch(self, step: int) -> None:
        """A batch is done, and the step needs more of them."""

    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """All gradients of the step after `step` are there, and the weights have not changed."""

    def end_step(self, step: int, epoch: float) -> None:
        """The weights have changed."""
