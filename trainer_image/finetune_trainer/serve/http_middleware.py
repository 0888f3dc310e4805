# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware of both engines: API keys, request ids, and the drain."""

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.errors import RequestError


class Drain:
    """State of the drain: whether it has started, and until when the server takes requests.

    A pod stops taking requests without refusing any:

    1. SIGTERM starts the drain: /health returns 503, and every response has `Connection: close`, so that
       clients reconnect to another pod. The server still answers every request, because traffic arrives until
       all nodes have removed the endpoint.
    2. After `drain_seconds` the server accepts no more connections, finishes the requests in flight, and
       exits 0.

    No route starts a drain, because any client of the Service could then remove a pod from it. A pod needs no
    preStop hook, because the kubelet sends SIGTERM when the endpoint leaves the Service. The pod's
    termination grace period must cover the drain and the longest response.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end: float | None = None

    def begin(self) -> None:
        """Start the drain. It cannot be undone; further calls have no effect."""
        if self._end is None:
            self._end = self._clock() + self._seconds

    @property
    def active(self) -> bool:
        """Whether the drain has started, so that clients should connect to another pod."""
        return self._end is not None

    @property
    def over(self) -> bool:
        """Whether the drain is over, so that the process may exit."""
        return self._end is not None and self._clock() >= self._end


class CloseConnections:
    """ASGI middleware that closes each connection after its response during a drain."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.active:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_closing)


REQUEST_ID_HEADER: Final = "x-request-id"

_VALID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Ids from clients end up in logs."""


class RequestIds:
    """ASGI middleware that keeps a request's valid id or creates one, and returns it in the response.

    A client or a gateway can choose the id. It is in the engine's log, too. OpenAI's client shows it as
    `_request_id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        if not _VALID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        header = REQUEST_ID_HEADER.encode()
        others = [(name, value) for name, value in scope["headers"] if name.lower() != header]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app({**scope, "headers": [*others, (header, request_id.encode())]}, receive, send_with_id)


INVALID_API_KEY: Final = "invalid_api_key"

_OPEN_PATHS: Final = frozenset({"/health", "/metrics"})
"""Paths for the kubelet and Prometheus, which have no key. Their responses contain no tenant's data."""
_REFRESH_SECONDS: Final = 5.0
"""Max age of the keys in memory."""
_MAX_KEY_BYTES: Final = 4096
_MAX_KEYS: Final = 1000

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys in a folder, re-read every few seconds.

    The folder is a mounted Secret with one key per file; file names have no meaning. The kubelet updates the
    mount when the Secret changes, so keys are rotated without a restart: add the new key, move the clients,
    remove the old key. Keys are compared in constant time and never logged. Without a readable key the server
    refuses every request: a mistake in the Secret must not open the endpoint.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._digests: tuple[bytes, ...] = ()
        self._read_at: float | None = None

    def admit(self, authorization: str) -> bool:
        """Return whether an Authorization header contains one of the keys.

        Compares digests of equal length, and all of them, so that the duration reveals nothing about a key.
        """
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip().encode("latin-1"))
        found = False
        for valid in self._current():
            found |= hmac.compare_digest(valid, digest)
        return found and scheme.lower() == "bearer"

    def _current(self) -> tuple[bytes, ...]:
        now = self._clock()
        if self._read_at is None or now - self._read_at >= _REFRESH_SECONDS:
            self._read_at = now
            self._refresh()
        return self._digests

    def _refresh(self) -> None:
        digests = tuple(_digest(key) for key in self._read())
        if digests != self._digests:
            logger.info("%d API keys are valid", len(digests))
        elif not digests:
            logger.error("no API key in %s: every request is refused", self._folder)
        self._digests = digests

    def _read(self) -> list[bytes]:
        try:
            # In a mount, the visible names are links into the folder ..data.
            names = sorted(each for each in self._folder.iterdir() if not each.name.startswith("."))
            keys = [
                each.read_bytes()[:_MAX_KEY_BYTES].strip() for each in names[:_MAX_KEYS] if each.is_file()
            ]
        except OSError as error:
            # The kubelet may be updating the mount; the next read follows in a few seconds.
            logger.warning("cannot read the API keys in %s: %s", self._folder, error.strerror)
            return []
        return [key for key in keys if key]


class RequireKey:
    """ASGI middleware that rejects requests without a valid key with 401, in the OpenAI API's shape."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization", "")
        if self._keys.admit(authorization):
            await self._app(scope, receive, send)
            return
        message = (
            "This API key is not valid for this endpoint: ask the owner of the endpoint for a key."
            if authorization
            else "This endpoint needs an API key: send it as the header `Authorization: Bearer KEY`."
        )
        headers = {"WWW-Authenticate": "Bearer"}
        error = RequestError(HTTPStatus.UNAUTHORIZED, message, code=INVALID_API_KEY, headers=headers)
        await error.response()(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
