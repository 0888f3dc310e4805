# SPDX-License-Identifier: Apache-2.0
"""Requests to a JSON API of the user, and what the user can do if it cannot be used.

Requests have the credentials of the API's endpoint, time limits and retries.
"""

import asyncio
import json
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import hdrs

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.remote.credentials import Credentials, invalid
from finetune_trainer.remote.origins import RedirectRefused, guard_connections, origin_of
from finetune_trainer.remote.remote_folder import CONNECT_SECONDS, MAX_ATTEMPTS, MAX_PAUSE_SECONDS
from finetune_trainer.remote.retries import (
    ProblemKind,
    RemoteProblem,
    Unreachable,
    classify_error,
    pause_seconds,
)
from finetune_trainer.remote.web import authorized_options
from finetune_trainer.runtime.termination import StageFailure

RESPONSE_SECONDS: Final = 300.0
"""Max duration of one attempt, unless the caller needs another one."""
MAX_RESPONSE_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 16

logger = logging.getLogger(__name__)


class JsonApiError(Exception):
    """A response that is not a success. The text is what the server says."""

    def __init__(self, status: int, text: str, retry_after: float = 0) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class JsonApi:
    """The API under one URL. As an async context manager it keeps its connections open."""

    def __init__(
        self,
        url: str,
        credentials: Credentials | None,
        on_attempt: Callable[[], None] = lambda: None,
        *,
        attempt_seconds: float = RESPONSE_SECONDS,
    ) -> None:
        """Prepare requests to addresses under `url`; sends none yet.

        Args:
            url: base address.
            credentials: sent as the header Authorization.
            on_attempt: called before each attempt.
            attempt_seconds: max duration of one attempt.

        Raises StageFailure: INVALID_CONFIG if the URL has no valid host and port, INVALID_CREDENTIALS if the
        credentials are not for its server.
        """
        try:
            origin = origin_of(url)
        except ValueError as error:
            problem = f"{url}: {error}; correct the address"
            raise StageFailure(FailureReason.INVALID_CONFIG, problem) from error
        if credentials is not None and origin_of(credentials.endpoint) != origin:
            raise invalid(
                credentials.secret_name,
                f"key endpoint is {credentials.endpoint}, which is not the server of {url}",
            )
        self._url, self._credentials, self._on_attempt = url.rstrip("/"), credentials, on_attempt
        self._attempt_seconds = attempt_seconds
        self._session: aiohttp.ClientSession | None = None
        self._successes = 0

    async def __aenter__(self) -> Self:
        guard_connections()
        options = await authorized_options(self._credentials, self._url)
        timeout = aiohttp.ClientTimeout(total=self._attempt_seconds, sock_connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(**{**options, "timeout": timeout})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, *, attempts: int = MAX_ATTEMPTS) -> Any:
        """Return the response to a GET request, as JSON types. Raises Unreachable."""
        return await self._request("GET", path, None, attempts)

    async def post(self, path: str, content: dict[str, Any]) -> Any:
        """Return the response to a POST request, as JSON types. Raises Unreachable."""
        return await self._request("POST", path, content, MAX_ATTEMPTS)

    async def _request(self, method: str, path: str, content: dict[str, Any] | None, attempts: int) -> Any:
        """Try until one attempt succeeds.

        Attempts do not count while other requests succeed: a server that limits their rate is not down.
        """
        attempt, before = 0, self._successes
        while True:
            attempt += 1
            self._on_attempt()
            try:
                response = await self._try(method, f"{self._url}/{path}", content)
            except (aiohttp.ClientError, JsonApiError, OSError, RedirectRefused) as error:
                problem = classify_error(error)
                if self._successes > before:
                    attempt, before = 1, self._successes
                if problem.kind is not ProblemKind.TRANSIENT or attempt == attempts:
                    raise Unreachable(problem) from error
                asked = error.retry_after if isinstance(error, JsonApiError) else 0
            else:
                self._successes += 1
                return response
            seconds = max(pause_seconds(attempt), min(asked, MAX_PAUSE_SECONDS))
            logger.warning("%s; retrying in %.0f s", problem.text, seconds)
            await asyncio.sleep(seconds)

    async def _try(self, method: str, url: str, content: dict[str, Any] | None) -> Any:
        if self._session is None:
            raise RuntimeError("the API is not open")
        async with self._session.request(method, url, json=content, allow_redirects=False) as response:
            if 300 <= response.status < 400:
                place = response.headers.get(hdrs.LOCATION, "")
                raise RedirectRefused(url, place, "name the address that answers")
            body = bytearray()
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    problem = RemoteProblem(
                        ProblemKind.REFUSED, f"the response has more than {MAX_RESPONSE_BYTES} bytes"
                    )
                    raise Unreachable(problem)
            if not response.ok:
                raise JsonApiError(
                    response.status, _message_of(bytes(body), response), _retry_after(response)
                )
        try:
            return json.loads(body)
        except (RecursionError, ValueError) as error:
            raise Unreachable(RemoteProblem(ProblemKind.REFUSED, "the response is not JSON")) from error


def _message_of(body: bytes, response: aiohttp.ClientResponse) -> str:
    """Return the message of an error as OpenAI's API has it, or the reason phrase."""
    with suppress(KeyError, RecursionError, TypeError, ValueError):
        found = json.loads(body)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    return response.reason or ""


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Return the seconds that the server asks to wait; 0 if it names none."""
    with suppress(ValueError):
        seconds = float(response.headers.get(hdrs.RETRY_AFTER, ""))
        return seconds if math.isfinite(seconds) else 0
    return 0


def advise(problem: RemoteProblem, credentials: SecretMount | None, otherwise: str) -> str:
    """What to do, in the imperative.

    Args:
        problem: why the API cannot be used.
        credentials: Secret that the `credentialsSecretRef` of the API names.
        otherwise: what to do about a response that is wrong for this API.
    """
    match problem.kind:
        case ProblemKind.DENIED if credentials is None:
            return "name a Secret with a token in its credentialsSecretRef"
        case ProblemKind.DENIED:
            return f"correct Secret {credentials.name}" if credentials else otherwise
        case ProblemKind.UNTRUSTED:
            return "add the certificate of its authority as caBundle to the Secret of credentialsSecretRef"
        case ProblemKind.FORBIDDEN_ADDRESS:
            return "use another server"
        case ProblemKind.TRANSIENT:
            return "check that its server runs, and that pods of this namespace can connect to it"
    return otherwise
