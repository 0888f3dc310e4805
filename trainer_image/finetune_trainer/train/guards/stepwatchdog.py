"""Ends a process whose training hangs, so that the next pod can resume.

A GPU or storage that stops responding blocks a call forever, and with it the main thread.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.runtime import termination

SHUTDOWN_SECONDS: Final = 30
"""Limit after which the process exits even if writing the log or the termination message hangs."""

logger = logging.getLogger(__name__)


class StepWatchdog:
    """A thread that ends the process unless it is fed in time; runs as long as the block."""

    def __init__(
        self,
        run: str,
        seconds: float,
        step: int,
        last_state: Callable[[], str],
        group: Group = ALONE,
        *,
        config: StageConfig | None = None,
    ) -> None:
        """Watch a run from `step` on.

        Args:
            run: folder of the run.
            seconds: maximum time between two calls of `feed`.
            step: the last finished optimizer step.
            last_state: describes the state that the next pod resumes from.
            group: the processes that wait for one another; only one of them reports the failure.
            config: config of the stage, which completes the result.
        """
        self._group = group
        self._config = config
        self._run = run
        self._seconds = seconds
        self._last_state = last_state
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
        """Record that a batch or a save finished; `step` is the last finished optimizer step."""
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
        message = (
            f"step {self._step + 1} hangs: no batch, validation batch or saved state finished within"
            f" {self._seconds:g} seconds. The next pod resumes from {self._last_state()}. If it hangs again,"
            " find the cause in the pod's log, which has the stacks of all threads, and check its GPU and the"
            " store. If it is only slow, raise compute.stepTimeoutSeconds in a new run"
        )
        logger.error("%s: %s", FailureReason.STEP_TIMEOUT, message)
        if not self._group.claim_failure():
            os._exit(ExitCode.PEER_LOST)
        result = StageResult(
            stage="train",
            run=self._run,
            outcome="Failed",
            reason=FailureReason.STEP_TIMEOUT,
            message=message,
        )
        if self._config is not None:
            result = self._config.bind(result)
        termination.write(termination.bounded(result))
        os._exit(ExitCode.INTERNAL)
