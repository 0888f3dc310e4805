"""Signs of life, and the moment from which a signal has something to save."""

from typing_extensions import override

from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.train.callbacks.state import Callback


class Heartbeat(Callback):
    """Feeds the watchdog and the clock of lost work with each batch."""

    @override
    def begin(self, step: int, epoch: float) -> None:
        """Stop before the first step if asked to."""
        self.run.context.stop.hold()
        if self.run.stopping():
            raise Preempted
        self.run.wasted_time.begin(step)
        self.run.watchdog.feed(step)

    @override
    def end_batch(self, step: int) -> None:
        self.run.alive(step)

    @override
    def end_step(self, step: int, epoch: float) -> None:
        self.run.alive(step)
