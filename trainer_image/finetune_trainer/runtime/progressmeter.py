"""How far work is, for the operator and for the log: not more often than either has use for."""

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
    """Whether some seconds have passed since they last had."""

    def __init__(self, seconds: float, *, due: bool = False) -> None:
        """`due`: whether they have passed already."""
        self._seconds = seconds
        self._began = float("-inf") if due else time.monotonic()

    def passed(self) -> bool:
        """True at most once within the seconds."""
        now = time.monotonic()
        if now - self._began < self._seconds:
            return False
        self._began = now
        return True

    def begin(self) -> None:
        """Count from now."""
        self._began = time.monotonic()


class ProgressMeter:
    """Counts work; the operator gets the count every second and the log a line every five.

    Args:
        total: all of the work; an estimate where `add` is given better ones.
        line: the log's line, from what is done and the total.
        reporter: what tells the operator; None where only the log is to know.
        unit: how much work is one step in what the operator gets.
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
        """The log has just had a line about this work."""
        self._log.begin()

    def add(self, work: int = 1, total: int | None = None) -> None:
        """Count work that is done; `total` where all of it is better known now."""
        self._done += work
        if total is not None:
            self._total = total
        if self._report.passed() or (total is None and self._done >= self._total):
            self.report()
        if self._log.passed():
            logger.info("%s", self._line(self._done, self._total))

    def end(self) -> None:
        """What is done is all of it."""
        self._total = self._done
        self.report()

    def report(self) -> None:
        """Give the operator the count now."""
        if self._reporter is not None:
            self._reporter.progress(
                Progress(step=self._done // self._unit, total_steps=self._total // self._unit)
            )
