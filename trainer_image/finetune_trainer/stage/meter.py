"""How far a stage is whose work is known in advance, and whether it was asked to stop."""

import logging
import time
from typing import Final

from finetune_trainer.contract.progress import Progress
from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.stage.context import StageContext

REPORT_SECONDS: Final = 1.0
LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class Meter:
    """Counts work; the operator gets the count every second and the log every five.

    `unit` is how much work is one step in what the operator gets.
    """

    def __init__(self, context: StageContext, total: int, unit: int = 1) -> None:
        self._context = context
        self._total = total
        self._unit = unit
        self._done = 0
        self._doing = ""
        self._reported_at = float("-inf")
        self._logged_at = time.monotonic()

    def begin(self, doing: str) -> None:
        """Name the work that follows, for the log."""
        logger.info("%s", doing)
        self._doing = doing
        self._logged_at = time.monotonic()

    def add(self, work: int = 1) -> None:
        """Count work that is done. Raises Preempted after a signal."""
        if self._context.stop.is_set():
            raise Preempted
        self._done += work
        now = time.monotonic()
        if now - self._reported_at < REPORT_SECONDS and self._done < self._total:
            return
        self._reported_at = now
        self._context.reporter.progress(
            Progress(step=self._done // self._unit, total_steps=self._total // self._unit)
        )
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.info("%s: %d %% of this stage", self._doing, 100 * self._done // max(self._total, 1))
