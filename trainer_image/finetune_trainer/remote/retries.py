# SPDX-License-Identifier: Apache-2.0
"""Failures of servers: classified, and retried if they are transient.

Errors are classified for all clients: five libraries have five families of exceptions. Transient are failures
of servers that restart, connections that break, and quotas that refill.
"""

import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from finetune_trainer.remote.origins import AddressRefused, RedirectRefused
from finetune_trainer.remote.remote_folder import MAX_ATTEMPTS, MAX_PAUSE_SECONDS, RemoteFolder
from finetune_trainer.runtime.logs import SCRUBBER, one_line
from finetune_trainer.runtime.termination import Preempted

RETRYABLE_STATUS_CODES: Final = frozenset({408, 425, 429})
"""HTTP client errors that may be transient. All server errors may be."""
MAX_PROBLEM_LENGTH: Final = 300
"""Max characters of the message of a server or client."""


class ProblemKind(Enum):
    """Class of a problem, by its remedy."""

    ABSENT = "absent"
    DENIED = "denied"
    FORBIDDEN_ADDRESS = "forbidden address"
    UNTRUSTED = "untrusted"
    LIMIT = "limit"
    REFUSED = "refused"
    """A retry would get the same response."""
    TRANSIENT = "transient"


@dataclass(frozen=True, slots=True)
class RemoteProblem:
    """Class and message of an error."""

    kind: ProblemKind
    text: str


def classify_error(error: BaseException) -> RemoteProblem:
    """Classify an error of a file system or its client."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, AddressRefused):
            return RemoteProblem(ProblemKind.FORBIDDEN_ADDRESS, cause.strerror or str(cause))
        if isinstance(cause, RedirectRefused):
            return RemoteProblem(ProblemKind.REFUSED, str(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteProblem(
                ProblemKind.UNTRUSTED, f"the server's certificate is not trusted: {_text_of(cause)}"
            )
    status = next((code for code in map(_status, chain) if code is not None), None)
    text = _message(chain, status)
    if status in {401, 403} or any(isinstance(cause, PermissionError) for cause in chain):
        return RemoteProblem(ProblemKind.DENIED, text)
    # fsspec reports "not found" for unreachable servers too; then another error is the root cause.
    if status in {404, 410} or isinstance(chain[-1], FileNotFoundError):
        return RemoteProblem(ProblemKind.ABSENT, f"not found: {text}")
    if status is not None and 400 <= status < 500 and status not in RETRYABLE_STATUS_CODES:
        return RemoteProblem(ProblemKind.REFUSED, text)
    return RemoteProblem(ProblemKind.TRANSIENT, text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error. Each library stores it in another attribute."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code if isinstance(code, int) else None
    # aiohttp has a `code` too, for responses that are not HTTP.
    names = ("code",) if type(error).__module__.startswith("gcsfs.") else ("status", "status_code")
    for holder in (error, response):
        for name in names:
            code = getattr(holder, name, None)
            if isinstance(code, int) and not isinstance(code, bool) and 100 <= code < 600:
                return code
    return None


def _message(chain: list[BaseException], status: int | None) -> str:
    first = next((text for text in map(_text_of, chain) if text), type(chain[0]).__name__)
    return first if status is None or str(status) in first else f"status {status}: {first}"


def _text_of(error: BaseException) -> str:
    # Scrub before truncation: the scrubber does not recognize part of a credential.
    return one_line(SCRUBBER.scrub(str(error)), MAX_PROBLEM_LENGTH)


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
                problem = classify_error(error)
                if progress() > before:
                    attempt, before = 1, progress()
                if problem.kind is not ProblemKind.TRANSIENT or attempt == MAX_ATTEMPTS:
                    raise Unreachable(problem) from error
            seconds = pause_seconds(attempt)
            logger.warning("%s; retrying in %.0f s", problem.text, seconds)
            if self._stop.wait(seconds):
                raise Preempted
