"""How far the reading is, for the operator and for the log."""

import logging
import time
from typing import Final

from finetune_trainer.contract import Progress
from finetune_trainer.data.files import SourceFile
from finetune_trainer.report import Reporter

REPORT_SECONDS: Final = 1.0
LOG_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


class Pace:
    """Counts rows; the total is estimated from the bytes read until it is known."""

    def __init__(self, files: list[SourceFile], reporter: Reporter) -> None:
        self.rows = 0
        self._files = files
        self._reporter = reporter
        self._total_bytes = sum(file.size for file in files)
        self._reported_at = self._logged_at = time.monotonic()

    def row(self) -> None:
        """Count a row, and report when it is time."""
        self.rows += 1
        now = time.monotonic()
        if now - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = now
        read = sum(file.bytes_read for file in self._files)
        total = max(self.rows, round(self.rows * self._total_bytes / max(read, 1)))
        self._reporter.progress(Progress(step=self.rows, total_steps=total))
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.info("%d of about %d rows", self.rows, total)

    def done(self) -> None:
        """Report that all rows are read."""
        self._reporter.progress(Progress(step=self.rows, total_steps=self.rows))
