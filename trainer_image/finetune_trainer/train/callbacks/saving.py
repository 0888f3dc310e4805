# SPDX-License-Identifier: Apache-2.0
"""Saves kept weights, the best weights and resume states, and ends the run after a signal."""

import logging
import time
from pathlib import Path
from typing import Final

from typing_extensions import override

from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.train.callbacks.state import Callback, StoppedEarly
from finetune_trainer.train.layout import ROW_LOSSES
from finetune_trainer.train.rowlosses import RowLosses

SAVED: Final = "saved the state after step %d in %.2f s: %s"
"""Log line of a complete state, with the seconds since it was begun; training continued meanwhile."""

logger = logging.getLogger(__name__)


class Keeping(Callback):
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


class Saving(Callback):
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
