# SPDX-License-Identifier: Apache-2.0
"""The runtime context of a stage, in addition to its config: store, reporter, progress, watchdog.

`StageMeter` counts an amount of work that is known in advance, and stops the stage after a signal.
`StepWatchdog` ends a process that hangs in training or evaluation, so that the next pod can resume: a GPU or
storage that stops responding blocks a call forever, and with it the main thread.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from typing_extensions import override

from finetune_trainer.contract.configs import EvaluateConfig, TrainConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.distributed.process_group import ALONE, Group
from finetune_trainer.runtime import termination
from finetune_trainer.runtime.progress import ProgressMeter, Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.store import Store


@dataclass(frozen=True)
class StageContext:
    """Store, reporter, stop flag and process group of one stage; SIGTERM and SIGINT set `stop`."""

    store: Store
    reporter: Reporter
    stop: Stop
    group: Group = ALONE
    """The processes that run the stage together."""


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


SHUTDOWN_SECONDS: Final = 30
"""Limit after which the process exits even if writing the log or the termination message hangs."""


class StepWatchdog:
    """A thread that ends the process unless it is fed in time; runs as long as the block."""

    def __init__(
        self,
        config: TrainConfig | EvaluateConfig,
        step: int,
        describe: Callable[[int], str],
        group: Group = ALONE,
    ) -> None:
        """Watch a stage from `step` on.

        Args:
            config: config of the stage; its `step_timeout_seconds` is the maximum time between two calls of
                `feed`.
            step: the last finished step, in the unit of the stage.
            describe: returns the failure's message for the last finished step.
            group: the processes that wait for one another; only one of them reports the failure.
        """
        self._config = config
        self._seconds = config.step_timeout_seconds
        self._describe = describe
        self._group = group
        self._step = step
        self._fed_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.feed(self._step)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def feed(self, step: int) -> None:
        """Record a sign of life; `step` is the last finished step."""
        self._step = step
        self._fed_at = time.monotonic()

    def _watch(self) -> None:
        while (remaining := self._fed_at + self._seconds - time.monotonic()) > 0:
            if self._ended.wait(remaining):
                return
        self._end()

    def _end(self) -> None:
        faulthandler.dump_traceback_later(SHUTDOWN_SECONDS, exit=True)  # with code 1, which is INTERNAL
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        message = self._describe(self._step)
        logger.error("%s: %s", FailureReason.STEP_TIMEOUT, message)
        if not self._group.claim_failure():
            os._exit(ExitCode.PEER_LOST)
        result = StageResult(
            stage=self._config.stage,
            run=self._config.run,
            outcome="Failed",
            reason=FailureReason.STEP_TIMEOUT,
            message=message,
        )
        termination.write(termination.fit_message(self._config.bind(result)))
        os._exit(ExitCode.INTERNAL)
