"""What happens between two optimizer steps: figures, validation, saving, stopping."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from finetune_trainer.context import StageContext
from finetune_trainer.contract import FailureReason, Hyperparameters, Progress
from finetune_trainer.failure import Preempted, StageFailure
from finetune_trainer.model.device import peak_memory
from finetune_trainer.model.loss import mean_completion_loss
from finetune_trainer.train.divergence import FACTOR, MOST_HIGH_STEPS
from finetune_trainer.train.kept import Retention
from finetune_trainer.train.ledger import Best, Ledger
from finetune_trainer.train.lostwork import LostWork
from finetune_trainer.train.metrics import Metrics
from finetune_trainer.train.pace import Pace
from finetune_trainer.train.states import States
from finetune_trainer.train.trainer import CompletionTrainer
from finetune_trainer.train.watchdog import Watchdog
from finetune_trainer.train.weights import Weights

LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class StoppedEarly(Exception):
    """The validation loss has not become lower for as many epochs as were asked for; the state is saved."""


@dataclass
class Loop(TrainerCallback):
    """Called by the Trainer around each step; ends training by raising Preempted, StageFailure, StoppedEarly.

    After the last step of an epoch: validation, then saving. A run that is stopped during validation saves
    before, and the next pod validates first.
    """

    trainer: CompletionTrainer
    model: torch.nn.Module
    validation: Sequence[Mapping[str, Tensor]]
    """Batches; none without a validation split."""
    states: States
    ledger: Ledger
    hyperparameters: Hyperparameters
    steps_per_epoch: int
    context: StageContext
    metrics: Metrics
    weights: Weights
    retention: Retention
    lost_work: LostWork
    watchdog: Watchdog
    pace: Pace = field(init=False)
    _learning_rate: float = field(init=False, default=0.0)
    _logged_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.pace = Pace(self.hyperparameters.total_steps)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before the first step if asked to, and catch up on a validation that was cut short."""
        if self.context.stop.is_set():
            raise Preempted
        step = state.global_step
        self.lost_work.begin(step)
        self.watchdog.feed(step)
        if self._ends_epoch(step) and self.ledger.evaluated_step < step:
            self._validate(step, state.epoch or 0)
        if self._out_of_patience(step):
            raise StoppedEarly

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.pace.begin_step()

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A batch is done, and the step needs more of them."""
        self._alive(state.global_step)

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let no step change the weights whose loss or gradient is not finite."""
        optimizer: torch.optim.Optimizer = kwargs["optimizer"]
        self._learning_rate = float(optimizer.param_groups[0]["lr"])
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not math.isfinite(self.trainer.sums.nats):
            raise self._not_finite(state.global_step + 1, f"training loss is {self.trainer.sums.nats}")
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise self._not_finite(state.global_step + 1, "gradient is not finite")

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step; validate after an epoch; save and stop when it is time."""
        step, epoch = state.global_step, state.epoch or 0.0
        self._alive(step)
        nats, labels, tokens = self.trainer.sums.take()
        self.ledger.add_step(nats, labels, tokens)
        self.pace.end_step(nats, labels, tokens)
        self._report(self.pace.progress(step, epoch, self._learning_rate))
        if self.ledger.losses.diverged:
            raise self._diverged(step, nats / labels)
        if self.retention.keeps(step, spoiled=self.ledger.losses.high_steps > 0):
            self.states.save_kept(step, self.weights.write)
            self.ledger.keep(step, epoch, self.retention)
            self.watchdog.feed(step)
        if self._ends_epoch(step):
            self.ledger.end_epoch()
            try:
                self._validate(step, epoch)
            except Preempted:
                self._save(step)
                raise
        stopping = self.context.stop.is_set()
        last = step == self.hyperparameters.total_steps
        # A state with a high loss would take the place of one to go back to.
        due = step % self.hyperparameters.save_every_steps == 0 and not self.ledger.losses.high_steps
        early = self._out_of_patience(step)
        if stopping or last or early or due:
            self._save(step)
        if stopping:
            self.lost_work.note()
            raise Preempted
        if early:
            raise StoppedEarly

    def _ends_epoch(self, step: int) -> bool:
        return step > 0 and step % self.steps_per_epoch == 0

    def _out_of_patience(self, step: int) -> bool:
        """Whether the run is to end after this step although there are more."""
        patience = self.hyperparameters.early_stopping_patience
        if patience is None or step == self.hyperparameters.total_steps:
            return False
        return self.ledger.steps_since_best >= patience * self.steps_per_epoch

    def _validate(self, step: int, epoch: float) -> None:
        if not self.validation:
            return
        loss = mean_completion_loss(self.model, self._until_stopped(step))
        if not math.isfinite(loss):
            raise self._not_finite(step, f"validation loss is {loss}")
        self.ledger.end_validation(step, loss)
        self.metrics.validation_loss.set(loss)
        logger.info(
            "epoch %.2f: training loss %.4f, validation loss %.4f", epoch, self.ledger.train_loss or 0, loss
        )
        if self.ledger.best is None or loss < self.ledger.best.validation_loss:
            self.states.save_best(step, self.weights.write)
            self.watchdog.feed(step)
            self.ledger.best = Best(
                step=step, epoch=epoch, train_loss=self.ledger.train_loss or 0, validation_loss=loss
            )

    def _until_stopped(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        for batch in self.validation:
            if self.context.stop.is_set():
                raise Preempted
            yield batch
            self._alive(step)

    def _alive(self, step: int) -> None:
        self.watchdog.feed(step)
        self.lost_work.tick()

    def _save(self, step: int) -> None:
        def fill(folder: Path) -> None:
            self.weights.write_resume(folder)
            self.trainer.write_state(folder)

        saved = self.states.save(step, self.ledger, fill)
        self.lost_work.saved(step)
        self.watchdog.feed(step)
        self.metrics.saved()
        logger.info("saved the state after step %d in %s", step, self.states.uri(saved))

    def _report(self, progress: Progress) -> None:
        progress = progress.model_copy(
            update={
                "validation_loss": self.ledger.validation_loss,
                "device_memory_bytes": peak_memory(self.trainer.args.device),
            }
        )
        self.context.reporter.progress(progress)
        self.metrics.show(progress)
        now = time.monotonic()
        if now - self._logged_at < LOG_SECONDS and progress.step < progress.total_steps:
            return
        self._logged_at = now
        logger.info(
            "step %d of %d, epoch %.2f, loss %.4f, learning rate %.2e, %.0f tokens/s, %.0f s left",
            progress.step,
            progress.total_steps,
            progress.epoch,
            progress.loss,
            progress.learning_rate,
            progress.tokens_per_second,
            progress.eta_seconds,
        )

    def _not_finite(self, step: int, what: str) -> StageFailure:
        return self._spoiled(FailureReason.LOSS_NOT_FINITE, f"step {step}: the {what}")

    def _diverged(self, step: int, loss: float) -> StageFailure:
        return self._spoiled(
            FailureReason.LOSS_DIVERGED,
            f"step {step}: the training loss is {loss:.4g} nats a token, and has been above {FACTOR} times"
            f" its running median of {self.ledger.losses.median:.4g} for {MOST_HIGH_STEPS} steps in a row, at"
            f" a learning rate of {self._learning_rate:.2e}",
        )

    def _spoiled(self, reason: FailureReason, what: str) -> StageFailure:
        return StageFailure(
            reason,
            f"{what}; make a new run with a hyperparameters.learningRate below"
            f" {self.hyperparameters.learning_rate:g}, and look for rows of extreme length or content. The"
            f" last good state is {self.states.last_good(self.ledger)}",
        )
