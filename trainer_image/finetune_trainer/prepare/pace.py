"""How far the reading is, for the operator and for the log."""

import logging
import time
from typing import Final

from finetune_trainer.contract.progress import Progress
from finetune_trainer.runtime.reporter import Reporter

REPORT_SECONDS: Final = 1.0
LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class Pace:
    """Counts rows; the total is estimated from the bytes read until it is known."""

    def __init__(self, total_bytes: int, reporter: Reporter) -> None:
        """`total_bytes`: of all files on disk."""
        self._rows = 0
        self._reporter = reporter
        self._total_bytes = total_bytes
        self._reported_at = self._logged_at = time.monotonic()

    def rows(self, count: int, bytes_read: int) -> None:
        """Count rows, the last of them after so many bytes of the files, and report when it is time."""
        self._rows += count
        now = time.monotonic()
        if now - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = now
        total = max(self._rows, round(self._rows * self._total_bytes / max(bytes_read, 1)))
        self._reporter.progress(Progress(step=self._rows, total_steps=total))
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.info("%d of about %d rows", self._rows, total)

    def done(self) -> None:
        """Report that all rows are read."""
        self._reporter.progress(Progress(step=self._rows, total_steps=self._rows))
