# SPDX-License-Identifier: Apache-2.0
"""Authentication of clients by API key.

The folder is a mounted Secret with one key per file; file names have no meaning. The kubelet updates the
mount when the Secret changes, so keys are rotated without a restart: add the new key, move the clients,
remove the old key. Keys are compared in constant time and never logged. Without a readable key the server
refuses every request: a mistake in the Secret must not open the endpoint.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_trainer.serve.errors import RequestError

INVALID_API_KEY: Final = "invalid_api_key"

_OPEN_PATHS: Final = frozenset({"/health", "/metrics"})
"""Paths for the kubelet and Prometheus, which have no key. Their responses contain no tenant's data."""
_REFRESH_SECONDS: Final = 5.0
"""Max age of the keys in memory."""
_MAX_KEY_BYTES: Final = 4096
_MAX_KEYS: Final = 1000

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys in a folder, re-read every few seconds."""

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
