# SPDX-License-Identifier: Apache-2.0
"""Callbacks between the steps of a training, which share one run state; independent of the trainer's library.

The session passes each event to the callbacks in this order: Heartbeat, ReportProgress, Divergence,
RetainCheckpoints, Validate, SaveState. Each may end training by raising Preempted, StageFailure or
StoppedEarly; the later callbacks are then not called.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.results import Progress
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.device import peak_memory
from finetune_trainer.runtime.progress import Interval
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext, StepWatchdog
from finetune_trainer.train.batches import LazyBatches
from finetune_trainer.train.figures import (
    RowLossCollector,
    RowLosses,
    StepFigures,
    Throughput,
    Validation,
    describe_rewards,
)
from finetune_trainer.train.state_folders import ROW_LOSSES
from finetune_trainer.train.states.ledger import (
    HIGH_LOSS_FACTOR,
    MAX_HIGH_LOSS_STEPS,
    Best,
    Retention,
    RunLedger,
)
from finetune_trainer.train.states.restarts import WastedTime
from finetune_trainer.train.states.resume_states import ResumeStates, StateSnapshot
from finetune_trainer.train.states.weights import TrainingWeights
from finetune_trainer.train.training_metrics import TrainingMetrics


class StoppedEarly(Exception):
    """The validation loss did not improve in `early_stopping_patience` validations; the state is saved."""


class TrainerProtocol(Protocol):
    """The methods that every trainer provides."""

    unit: str
    """Unit of the loss, for messages."""

    def gradient_norm(self) -> float:
        """Norm of all gradients of the current optimizer step before clipping, the same in all processes."""
        ...

    def take_step(self) -> StepFigures:
        """Return the figures of the current optimizer step of this process, when all batches are computed."""
        ...

    def validate(
        self, batches: Iterable[Mapping[str, Tensor]], by_row: RowLossCollector | None = None
    ) -> Validation:
        """Validate without dropout and random numbers; leaves the model in evaluation mode.

        `by_row` gets the losses of the rows.
        """
        ...

    def collect_state(self) -> StateSnapshot:
        """Collect this process's files of the state from which training resumes. Collective."""
        ...


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


class Heartbeat(Callback):
    """Feeds the watchdog and the clock of wasted time with each batch.

    From `begin` on, a signal must save a state.
    """

    @override
    def begin(self, step: int, epoch: float) -> None:
        """Stop before the first step if a signal has arrived."""
        self.run.context.stop.hold()
        if self.run.stopping():
            raise Preempted
        self.run.wasted_time.begin(step)
        self.run.watchdog.feed(step)

    @override
    def end_batch(self, step: int) -> None:
        self.run.record_batch(step)

    @override
    def end_step(self, step: int, epoch: float) -> None:
        self.run.record_batch(step)


LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class ReportProgress(Callback):
    """Reports the figures of each step to the ledger, the operator and Prometheus.

    Logs a step every few seconds, and the last one.
    """

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
                "validation_step": run.ledger.evaluated_step or None,
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


SAVED: Final = "saved the state after step %d in %.2f s: %s"
"""Log line of a complete state, with the seconds since it was begun; training continued meanwhile."""


class RetainCheckpoints(Callback):
    """Keeps the weights of steps that become Checkpoints."""

    @override
    def end_step(self, step: int, epoch: float) -> None:
        run = self.run
        if not run.retention.keeps(step, loss_is_high=run.ledger.losses.high_steps > 0):
            return
        if run.context.group.is_main_process:
            run.states.save_kept(step, run.weights.write)
        else:
            run.weights.contribute()
        run.ledger.keep(step, epoch, run.retention)
        run.watchdog.feed(step)


class SaveState(Callback):
    """Saves the state when a save is due, at the last step, and when the run stops."""

    @override
    def begin(self, step: int, epoch: float) -> None:
        if self.run.out_of_patience(step):
            raise StoppedEarly

    @override
    def end_step(self, step: int, epoch: float) -> None:
        hyperparameters, ledger = self.run.hyperparameters, self.run.ledger
        stopping = self.run.stopping()
        is_last = step == hyperparameters.total_steps
        # A state with a high loss would replace a good one.
        due = step % hyperparameters.save_every_steps == 0 and not ledger.losses.high_steps
        stops_early = self.run.out_of_patience(step)
        if stopping or is_last or stops_early or due:
            self.save(step)
        else:
            self.run.states.check_save()
        if stopping or is_last or stops_early:
            self.run.states.finish_save()
        if stopping:
            self.run.wasted_time.flush()
            self.run.context.group.end_collectives()
            raise Preempted
        if stops_early:
            raise StoppedEarly

    def save(self, step: int) -> None:
        """Begin to save the state after `step`. Collective."""
        began_at, metrics = time.monotonic(), self.run.metrics

        def saved(uri: str) -> None:
            metrics.saved()
            logger.info(SAVED, step, time.monotonic() - began_at, uri)

        self.run.states.begin_save(step, self.run.ledger, self.run.trainer.collect_state, saved)
        self.run.wasted_time.saved(step)
        self.run.watchdog.feed(step)

    def save_best(self, step: int, losses: RowLosses | None = None) -> None:
        """Save the weights that the ledger records as the best next, with `losses`. Collective."""

        def fill(folder: Path) -> None:
            self.run.weights.write(folder)
            if losses is not None:
                (folder / ROW_LOSSES).write_text(losses.model_dump_json(), encoding="utf-8")

        if self.run.context.group.is_main_process:
            self.run.states.save_best(step, fill)
        else:
            self.run.weights.contribute()
        self.run.watchdog.feed(step)


MIN_SAMPLED_ROWS: Final = 256
"""Fewer rows make a loss too noisy to choose the best weights by."""
STEP_COST: Final = 3
"""Cost of a training step relative to a forward pass of its rows: the backward pass costs twice as much."""
MAX_TIME_SHARE: Final = 0.1
"""Share of the training time that validations between epochs may take."""

T = TypeVar("T")


def validation_sample(rows: Sequence[T], hyperparameters: Hyperparameters) -> Sequence[T]:
    """The rows of every validation: all of them if it follows an epoch, else a sample of bounded size.

    The sample has at least `MIN_SAMPLED_ROWS` rows, and so many that validations take `MAX_TIME_SHARE` of the
    time of the steps between them, if validation rows are as long as training rows. It depends only on the
    seed.
    """
    if hyperparameters.validate_every_steps is None:
        return rows
    affordable = int(
        hyperparameters.validate_every_steps * hyperparameters.batch_size * STEP_COST * MAX_TIME_SHARE
    )
    size = max(MIN_SAMPLED_ROWS, affordable)
    if len(rows) <= size:
        return rows
    generator = torch.Generator().manual_seed(hyperparameters.seed)
    order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[index] for index in sorted(order[:size])]


class Validate(Callback):
    """Validates after each interval, and saves the weights with the lowest validation loss.

    A run that is stopped during validation saves its state first; the next pod repeats the validation.
    """

    def __init__(self, run: RunState, batches: LazyBatches, saving: SaveState, by_row: int = 0) -> None:
        """`batches` are those of this process; empty without validation rows.

        If `by_row` is the number of validation rows, the loss of each is saved with the best weights.
        """
        super().__init__(run)
        self._batches = batches
        self._saving = saving
        self._by_row = by_row

    @override
    def begin(self, step: int, epoch: float) -> None:
        """Repeat a validation that was interrupted."""
        if self.run.validates(step) and self.run.ledger.evaluated_step < step:
            self._validate(step, epoch)

    @override
    def end_step(self, step: int, epoch: float) -> None:
        run = self.run
        # A run that maxSteps ends within its first epoch has that part of an epoch only.
        ends_first = step == run.hyperparameters.total_steps and run.ledger.train_loss is None
        if run.ends_epoch(step) or ends_first:
            run.ledger.end_epoch()
        if not self.run.validates(step):
            return
        try:
            self._validate(step, epoch)
        except Preempted:
            self._saving.save(step)
            self.run.context.group.end_collectives()
            raise

    def _validate(self, step: int, epoch: float) -> None:
        if not self._batches:
            return
        ledger = self.run.ledger
        by_row = RowLossCollector(self._batches.numbers, self._by_row) if self._by_row else None
        validation = self.run.trainer.validate(self._until_stopped(step), by_row)
        loss = validation.loss
        if not math.isfinite(loss):
            raise self.run.not_finite(step, f"validation loss is {loss}")
        ledger.end_validation(step, loss)
        ledger.validation_rewards = validation.rewards
        self.run.metrics.validation_loss.set(loss)
        logger.info(
            "epoch %.2f: training loss %.4f, validation loss %.4f%s",
            epoch,
            ledger.validated_train_loss or 0,
            loss,
            describe_rewards(validation.rewards, "validation "),
        )
        if ledger.best is None or loss < ledger.best.validation_loss:
            self._saving.save_best(step, by_row.gathered(self.run.context.group) if by_row else None)
            ledger.best = Best(
                step=step,
                epoch=epoch,
                train_loss=ledger.validated_train_loss or 0,
                validation_loss=loss,
                **ledger.reward_figures(),
            )

    def _until_stopped(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        for batch in self._batches:
            if self.run.stopping():
                raise Preempted
            yield batch
            self.run.record_batch(step)
