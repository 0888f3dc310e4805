"""Ask again when a failure may pass: servers restart, connections break, and quotas refill."""

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from finetune_trainer.remote.limits import MAX_ATTEMPTS, MAX_PAUSE_SECONDS
from finetune_trainer.remote.origin import RedirectRefused
from finetune_trainer.remote.remotefolder import RemoteFolder
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem, problem_of
from finetune_trainer.runtime.failure import Preempted

Answer = TypeVar("Answer")

FIRST_PAUSE_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """What was asked for could not be had; `problem` says why."""

    def __init__(self, problem: RemoteProblem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class Retrier:
    """Makes requests about one folder until one succeeds, or until trying again is useless."""

    def __init__(self, folder: RemoteFolder, stop: threading.Event) -> None:
        self._expected: tuple[type[Exception], ...] = (
            OSError,
            EOFError,
            TimeoutError,
            RedirectRefused,
            *folder.errors,
        )
        self._stop = stop

    def call(self, request: Callable[[], Answer], progress: Callable[[], int] = lambda: 0) -> Answer:
        """What `request` returns; attempts after which `progress` has grown do not count.

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
                if problem.kind is not ProblemKind.PASSING or attempt == MAX_ATTEMPTS:
                    raise Unreachable(problem) from error
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), MAX_PAUSE_SECONDS)
            logger.warning("%s; trying again in %.0f s", problem.text, pause)
            if self._stop.wait(pause):
                raise Preempted
