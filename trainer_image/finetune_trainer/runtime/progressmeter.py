# SPDX-License-Identifier: Apache-2.0
"""Reports progress of work to the operator and to the log, at limited rates."""

import logging
import time
from collections.abc import Callable
from typing import Final

from finetune_trainer.contract.progress import Progress
from finetune_trainer.runtime.reporter import Reporter

REPORT_SECONDS: Final = 1.0
LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class Interval:
    """Limits an action to once per number of seconds."""

    def __init__(self, seconds: float, *, due: bool = False) -> None:
        """`due`: whether the first interval has already passed."""
        self._seconds = seconds
        self._began = float("-inf") if due else time.monotonic()

    def passed(self) -> bool:
        """Return whether the interval has passed, and start the next one."""
        now = time.monotonic()
        if now - self._began < self._seconds:
            return False
        self._began = now
        return True

    def begin(self) -> None:
        """Start the interval now."""
        self._began = time.monotonic()


class ProgressMeter:
    """Counts work. Reports the count to the operator every second, and a line to the log every 5 seconds.

    Args:
        total: total work; an estimate if `add` gets better ones.
        line: builds the log line from the work done and the total.
        reporter: sends the count to the operator; None for the log only.
        unit: work per step that the operator gets.
    """

    def __init__(
        self,
        total: int,
        line: Callable[[int, int], str],
        reporter: Reporter | None = None,
        *,
        unit: int = 1,
    ) -> None:
        self._total = total
        self._line = line
        self._reporter = reporter
        self._unit = unit
        self._done = 0
        self._report = Interval(REPORT_SECONDS, due=True)
        self._log = Interval(LOG_SECONDS)

    def restart_log(self) -> None:
        """Restart the interval of log lines, after another line about this work."""
        self._log.begin()

    def add(self, work: int = 1, total: int | None = None) -> None:
        """Count work done. `total` is a better estimate of the total."""
        self._done += work
        if total is not None:
            self._total = total
        if self._report.passed() or (total is None and self._done >= self._total):
            self.report()
        if self._log.passed():
            logger.info("%s", self._line(self._done, self._total))

    def end(self) -> None:
        """Set the total to the work done, and report it."""
        self._total = self._done
        self.report()

    def report(self) -> None:
        """Report the count to the operator now."""
        if self._reporter is not None:
            self._reporter.progress(
                Progress(step=self._done // self._unit, total_steps=self._total // self._unit)
            )
