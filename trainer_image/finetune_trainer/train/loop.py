"""What happens between two optimizer steps: figures, validation, saving, stopping."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.progress import Progress
from finetune_trainer.model.device import peak_memory
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.train.guards.watchdog import Watchdog
from finetune_trainer.train.metrics import Metrics
from finetune_trainer.train.preference.rewards import in_words
from finetune_trainer.train.protocol import Learner
from finetune_trainer.train.states.attempts import LostWork
from finetune_trainer.train.states.ledger import Best, Ledger
from finetune_trainer.train.states.losses import FACTOR, MOST_HIGH_STEPS
from finetune_trainer.train.states.resume import States
from finetune_trainer.train.states.retention import Retention
from finetune_trainer.train.states.weights import Weights, WholeWeights
from finetune_trainer.train.throughput import Pace

LOG_SECONDS: Final = 5.0
SAVED: Final = "saved the state after step %d in %.2f s: %s"
"""Training stands still for so long."""

logger = logging.getLogger(__name__)


class StoppedEarly(Exception):
    """The validation loss has not become lower for as many epochs as were asked for; the state is saved."""


@dataclass
class Loop(TrainerCallback):
    """Called by the Trainer around each step; ends training by raising Preempted, StageFailure, StoppedEarly.

    After the last step of an epoch: validation, then saving. A run that is stopped during validation saves
    before, and the next pod validates first.
    """

    trainer: Learner
    validation: Sequence[Mapping[str, Tensor]]
    """This process's batches; none without a validation split."""
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
        self.context.stop.hold()
        if self._stopping():
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
        (nats,) = self.context.group.sums(self.trainer.sums.nats)
        if not math.isfinite(nats):
            raise self._not_finite(state.global_step + 1, f"training loss is {nats}")
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not torch.isfinite(norm):
            raise self._not_finite(state.global_step + 1, "gradient is not finite")

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step; validate after an epoch; save and stop when it is time."""
        step, epoch = state.global_step, state.epoch or 0.0
        self._alive(step)
        nats, labels, tokens = self._take_sums()
        rewards = self.trainer.take_rewards()
        self.ledger.add_step(nats, labels, tokens, rewards)
        self.pace.end_step(nats, labels, tokens, rewards)
        self._report(self.pace.progress(step, epoch, self._learning_rate), args.device)
        if self.ledger.losses.diverged:
            raise self._diverged(step, nats / labels)
        if self.retention.keeps(step, spoiled=self.ledger.losses.high_steps > 0):
            weights = self.weights.collect()
            if self.context.group.leads:
                self.states.save_kept(step, weights.write)
            self.ledger.keep(step, epoch, self.retention)
            self.watchdog.feed(step)
        if self._ends_epoch(step):
            self.ledger.end_epoch()
            try:
                self._validate(step, epoch)
            except Preempted:
                self._save(step)
                self.context.group.part()
                raise
        stopping = self._stopping()
        last = step == self.hyperparameters.total_steps
        # A state with a high loss would take the place of one to go back to.
        due = step % self.hyperparameters.save_every_steps == 0 and not self.ledger.losses.high_steps
        early = self._out_of_patience(step)
        if stopping or last or early or due:
            self._save(step)
        if stopping:
            self.lost_work.note()
            self.context.group.part()
            raise Preempted
        if early:
            raise StoppedEarly

    def _take_sums(self) -> tuple[float, int, int]:
        """Of all processes: summed loss, labelled tokens and tokens read of the step that is done."""
        nats, labels, tokens = self.context.group.sums(*self.trainer.sums.take())
        return nats, int(labels), int(tokens)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop; then all of them stop after the same step."""
        return self.context.group.any(self.context.stop.is_set())

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
        validation = self.trainer.validate(self._until_stopped(step))
        loss = validation.loss
        if not math.isfinite(loss):
            raise self._not_finite(step, f"validation loss is {loss}")
        self.ledger.end_validation(step, loss)
        self.ledger.validation_rewards = validation.rewards
        self.metrics.validation_loss.set(loss)
        logger.info(
            "epoch %.2f: training loss %.4f, validation loss %.4f%s",
            epoch,
            self.ledger.train_loss or 0,
            loss,
            in_words(validation.rewards, "validation "),
        )
        if self.ledger.best is None or loss < self.ledger.best.validation_loss:
            weights = self.weights.collect()
            if self.context.group.leads:
                self.states.save_best(step, weights.write)
            self.watchdog.feed(step)
            self.ledger.best = Best(
                step=step,
                epoch=epoch,
                train_loss=self.ledger.train_loss or 0,
                validation_loss=loss,
                **self.ledger.reward_figures(),
            )

    def _until_stopped(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        for batch in self.validation:
            if self._stopping():
                raise Preempted
            yield batch
            self._alive(step)

    def _alive(self, step: int) -> None:
        self.watchdog.feed(step)
        self.lost_work.tick()

    def _save(self, step: int) -> None:
        weights, write_state = self.weights.collect(), self.trainer.collect_state()
        if self.context.group.leads:
            self._write(step, weights, write_state)
        self.context.group.told(step)  # nobody leaves before it is saved
        self.watchdog.feed(step)

    def _write(self, step: int, weights: WholeWeights, write_state: Callable[[Path], None]) -> None:
        def fill(folder: Path) -> None:
            weights.write_resume(folder)
            write_state(folder)

        began = time.monotonic()
        saved = self.states.save(step, self.ledger, fill)
        self.lost_work.saved(step)
        self.metrics.saved()
        logger.info(SAVED, step, time.monotonic() - began, self.states.uri(saved))

    def _report(self, progress: Progress, device: torch.device) -> None:
        progress = progress.model_copy(
            update={
                "validation_loss": self.ledger.validation_loss,
                "device_memory_bytes": peak_memory(device),
            }
        )
        self.context.reporter.progress(progress)
        self.metrics.show(progress)
        now = time.monotonic()
        if now - self._logged_at < LOG_SECONDS and progress.step < progress.total_steps:
            return
        self._logged_at = now
        logger.info(
            "step %d of %d, epoch %.2f, loss %.4f%s, learning rate %.2e, %.0f tokens/s, %.0f s left",
            progress.step,
            progress.total_steps,
            progress.epoch,
            progress.loss,
            in_words(self.pace.rewards),
            progress.learning_rate,
            progress.tokens_per_second,
            progress.eta_seconds,
        )

    def _not_finite(self, step: int, what: str) -> StageFailure:
        return self._spoiled(FailureReason.LOSS_NOT_FINITE, f"step {step}: the {what}")

    def _diverged(self, step: int, loss: float) -> StageFailure:
        return self._spoiled(
            FailureReason.LOSS_DIVERGED,
            f"step {step}: the training loss is {loss:.4g} {self.trainer.unit}, and has been above"
            f" {FACTOR} times its running median of {self.ledger.losses.median:.4g} for {MOST_HIGH_STEPS}"
            f" steps in a row, at a learning rate of {self._learning_rate:.2e}",
        )

    def _spoiled(self, reason: FailureReason, what: str) -> StageFailure:
        return StageFailure(
            reason,
            f"{what}; make a new run with a hyperparameters.learningRate below"
            f" {self.hyperparameters.learning_rate:g}, and look for rows of extreme length or content. The"
            f" last good state is {self.states.last_good(self.ledger)}",
        )
