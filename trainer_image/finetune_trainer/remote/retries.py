# SPDX-License-Identifier: Apache-2.0
"""Retries of requests after transient failures: servers restart, connections break, and quotas refill."""

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from finetune_trainer.remote.limits import MAX_ATTEMPTS, MAX_PAUSE_SECONDS
from finetune_trainer.remote.origin import RedirectRefused
from finetune_trainer.remote.remotefolder import RemoteFolder
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem, problem_of
from finetune_trainer.runtime.failure import Preempted

ResultT = TypeVar("ResultT")

FIRST_PAUSE_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """A request that failed for good; `problem` says why."""

    def __init__(self, problem: RemoteProblem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def pause_seconds(attempt: int) -> float:
    """Return the pause after a failed attempt, which is counted from 1."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1), MAX_PAUSE_SECONDS)


class Retrier:
    """Retries requests to one folder until one succeeds, or until a retry cannot help."""

    def __init__(self, folder: RemoteFolder, stop: threading.Event) -> None:
        self._expected: tuple[type[Exception], ...] = (
            OSError,
            EOFError,
            TimeoutError,
            RedirectRefused,
            *folder.errors,
        )
        self._stop = stop

    def call(self, request: Callable[[], ResultT], progress: Callable[[], int] = lambda: 0) -> ResultT:
        """Return the result of `request`. Attempts that increase `progress` do not count.

        Raises Unreachable, Preempted.
        """
        attempt, before = 0, progress()
        while True:
            attempt += 1
            try:
                return request()
            except self._expected as error:
                problem = problem_of(error)
                if progress() > before:
                    attempt, before = 1, progress()
                if problem.kind is not ProblemKind.TRANSIENT or attempt == MAX_ATTEMPTS:
                    raise Unreachable(problem) from error
            seconds = pause_seconds(attempt)
            logger.warning("%s; retrying in %.0f s", problem.text, seconds)
            if self._stop.wait(seconds):
                raise Preempted
