# SPDX-License-Identifier: Apache-2.0
"""Heartbeats, and the moment from which a signal must save a state."""

from typing_extensions import override

from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.train.callbacks.state import Callback


class Heartbeat(Callback):
    """Feeds the watchdog and the clock of wasted time with each batch."""

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
