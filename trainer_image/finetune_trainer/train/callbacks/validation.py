# SPDX-License-Identifier: Apache-2.0
"""Validates after each interval, and saves the weights with the lowest validation loss."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.train.callbacks.saving import Saving
from finetune_trainer.train.callbacks.state import Callback, RunState
from finetune_trainer.train.heldout import LazyBatches
from finetune_trainer.train.rewards import describe_rewards
from finetune_trainer.train.rowlosses import RowLossCollector
from finetune_trainer.train.states.ledger import Best

MIN_SAMPLED_ROWS: Final = 256
"""Fewer rows make a loss too noisy to choose the best weights by."""
STEP_COST: Final = 3
"""Cost of a training step relative to a forward pass of its rows: the backward pass costs twice as much."""
MAX_TIME_SHARE: Final = 0.1
"""Share of the training time that validations between epochs may take."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


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


class Validating(Callback):
    """A run that is stopped during validation saves its state first; the next pod repeats the validation."""

    def __init__(self, run: RunState, batches: LazyBatches, saving: Saving, by_row: int = 0) -> None:
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
