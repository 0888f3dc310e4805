# SPDX-License-Identifier: Apache-2.0
"""Progress of a stage whose amount of work is known in advance; stops the stage after a signal."""

import logging

from typing_extensions import override

from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.runtime.progressmeter import ProgressMeter
from finetune_trainer.stage.context import StageContext

logger = logging.getLogger(__name__)


class StageMeter(ProgressMeter):
    """Counts the work of a stage, one activity after another."""

    def __init__(self, context: StageContext, total: int, unit: int = 1) -> None:
        """`unit` is the amount of work per step of the progress that the operator receives."""
        super().__init__(total, self._line_of_activity, context.reporter, unit=unit)
        self._stop = context.stop
        self._activity = ""

    def begin(self, activity: str) -> None:
        """Name the following work for the log."""
        logger.info("%s", activity)
        self._activity = activity
        self.restart_log()

    @override
    def add(self, work: int = 1, total: int | None = None) -> None:
        """Count finished work. Raises Preempted after a signal."""
        if self._stop.is_set():
            raise Preempted
        super().add(work, total)

    def _line_of_activity(self, done: int, total: int) -> str:
        return f"{self._activity}: {100 * done // max(total, 1)} % of this stage"
