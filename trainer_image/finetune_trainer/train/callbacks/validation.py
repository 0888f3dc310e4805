"""Validates after each epoch, and saves the weights with the lowest validation loss."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor
from typing_extensions import override

from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.train.callbacks.saving import Saving
from finetune_trainer.train.callbacks.state import Callback, RunState
from finetune_trainer.train.preference.rewards import describe_rewards
from finetune_trainer.train.states.ledger import Best

logger = logging.getLogger(__name__)


class Validating(Callback):
    """A run that is stopped during validation saves its state first; the next pod repeats the validation."""

    def __init__(self, run: RunState, batches: Sequence[Mapping[str, Tensor]], saving: Saving) -> None:
        """`batches` are those of this process; empty without validation rows."""
        super().__init__(run)
        self._batches = batches
        self._saving = saving

    @override
    def begin(self, step: int, epoch: float) -> None:
        """Repeat a validation that was interrupted."""
        if self.run.ends_epoch(step) and self.run.ledger.evaluated_step < step:
            self._validate(step, epoch)

    @override
    def end_step(self, step: int, epoch: float) -> None:
        if not self.run.ends_epoch(step):
            return
        self.run.ledger.end_epoch()
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
        validation = self.run.trainer.validate(self._until_stopped(step))
        loss = validation.loss
        if not math.isfinite(loss):
            raise self.run.not_finite(step, f"validation loss is {loss}")
        ledger.end_validation(step, loss)
        ledger.validation_rewards = validation.rewards
        self.run.metrics.validation_loss.set(loss)
        logger.info(
            "epoch %.2f: training loss %.4f, validation loss %.4f%s",
            epoch,
            ledger.train_loss or 0,
            loss,
            describe_rewards(validation.rewards, "validation "),
        )
        if ledger.best is None or loss < ledger.best.validation_loss:
            self._saving.save_best(step)
            ledger.best = Best(
                step=step,
                epoch=epoch,
                train_loss=ledger.train_loss or 0,
                validation_loss=loss,
                **ledger.reward_figures(),
            )

    def _until_stopped(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        for batch in self._batches:
            if self.run.stopping():
                raise Preempted
            yield batch
            self.run.record_batch(step)
