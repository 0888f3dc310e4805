"""What an error of any client means: five libraries have five families of them."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from finetune_trainer.remote.addresses import AddressRefused
from finetune_trainer.remote.origin import RedirectRefused
from finetune_trainer.runtime.scrubbing import SCRUBBER, one_line

RETRYABLE_STATUS_CODES: Final = frozenset({408, 425, 429})
"""Client errors of HTTP that pass; all server errors may."""
MAX_PROBLEM_LENGTH: Final = 300
"""Of what a server or its client says."""


class ProblemKind(Enum):
    """What can be done about it."""

    ABSENT = "absent"
    DENIED = "denied"
    FORBIDDEN_ADDRESS = "forbidden address"
    UNTRUSTED = "untrusted"
    LIMIT = "limit"
    REFUSED = "refused"
    """Asked again, the server would say the same."""
    PASSING = "passing"


@dataclass(frozen=True, slots=True)
class RemoteProblem:
    """An error's meaning, and the words for it."""

    kind: ProblemKind
    text: str


def problem_of(error: BaseException) -> RemoteProblem:
    """The meaning of an error that a file system or its client raised."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, AddressRefused):
            return RemoteProblem(ProblemKind.FORBIDDEN_ADDRESS, cause.strerror or str(cause))
        if isinstance(cause, RedirectRefused):
            return RemoteProblem(ProblemKind.REFUSED, str(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteProblem(
                ProblemKind.UNTRUSTED, f"the server's certificate is not trusted: {_words_of(cause)}"
            )
    status = next((code for code in map(_status, chain) if code is not None), None)
    text = _words(chain, status)
    if status in {401, 403} or any(isinstance(cause, PermissionError) for cause in chain):
        return RemoteProblem(ProblemKind.DENIED, text)
    # fsspec says "not found" also of servers that it could not reach; then something else is underneath.
    if status in {404, 410} or isinstance(chain[-1], FileNotFoundError):
        return RemoteProblem(ProblemKind.ABSENT, f"not found: {text}")
    if status is not None and 400 <= status < 500 and status not in RETRYABLE_STATUS_CODES:
        return RemoteProblem(ProblemKind.REFUSED, text)
    return RemoteProblem(ProblemKind.PASSING, text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    """The status of the HTTP answer behind an error, which each library keeps in a place of its own."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code if isinstance(code, int) else None
    # aiohttp has a `code` too, of answers that are no HTTP.
    names = ("code",) if type(error).__module__.startswith("gcsfs.") else ("status", "status_code")
    for holder in (error, response):
        for name in names:
            code = getattr(holder, name, None)
            if isinstance(code, int) and not isinstance(code, bool) and 100 <= code < 600:
                return code
    return None


def _words(chain: list[BaseException], status: int | None) -> str:
    first = next((text for text in map(_words_of, chain) if text), type(chain[0]).__name__)
    return first if status is None or str(status) in first else f"status {status}: {first}"


def _words_of(error: BaseException) -> str:
    # Before it is cut: of a credential that is cut in two nobody finds the rest.
    return one_line(SCRUBBER.scrub(str(error)), MAX_PROBLEM_LENGTH)
