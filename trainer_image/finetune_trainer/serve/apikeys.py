"""API keys: who may use the models.

Each file of a folder holds one key; its name is for people. The folder is a Secret's mount, which the kubelet
renews when the Secret changes, so keys are rotated without a restart: add the new one, move the clients,
remove the old one. Keys are compared in constant time and never logged. Without a readable key every request
is refused: a mistake in the Secret must not open the endpoint.
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
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_trainer.serve.errors import RequestError

INVALID_API_KEY: Final = "invalid_api_key"

_OPEN_PATHS: Final = frozenset({"/health", "/metrics"})
"""For the kubelet and Prometheus, which have no key; nothing that a tenant sent is in their answers."""
_REFRESH_SECONDS: Final = 5.0
"""How old the keys in memory may be."""
_MAX_KEY_BYTES: Final = 4096
_MAX_KEYS: Final = 1000

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys in a folder, read again every few seconds."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._digests: tuple[bytes, ...] = ()
        self._read_at: float | None = None

    def admit(self, authorization: str) -> bool:
        """Whether an Authorization header has one of the keys.

        Digests of one length are compared, and all of them, so that the time tells nothing about any key.
        """
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip().encode("latin-1"))
        found = False
        for known in self._current():
            found |= hmac.compare_digest(known, digest)
        return found and scheme.lower() == "bearer"

    def _current(self) -> tuple[bytes, ...]:
        now = self._clock()
        if self._read_at is None or now - self._read_at >= _REFRESH_SECONDS:
            self._read_at = now
            self._renew()
        return self._digests

    def _renew(self) -> None:
        digests = tuple(_digest(key) for key in self._read())
        if digests != self._digests:
            logger.info("%d API keys are valid", len(digests))
        elif not digests:
            logger.error("there is no API key in %s, so every request is refused", self._folder)
        self._digests = digests

    def _read(self) -> list[bytes]:
        try:
            # A mount has the folder ..data, which the visible names are links into.
            names = sorted(each for each in self._folder.iterdir() if not each.name.startswith("."))
            keys = [
                each.read_bytes()[:_MAX_KEY_BYTES].strip() for each in names[:_MAX_KEYS] if each.is_file()
            ]
        except OSError as error:
            # The kubelet may be renewing the mount: the next look is in a few seconds.
            logger.warning("the API keys in %s cannot be read: %s", self._folder, error.strerror)
            return []
        return [key for key in keys if key]


class RequireKey:
    """ASGI middleware: answers 401 in the OpenAI API's shape to requests without a valid key."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization", "")
        if self._keys.admit(authorization):
            await self._app(scope, receive, send)
            return
        message = (
            "This API key is not valid for this endpoint: ask whoever runs it for one."
            if authorization
            else "This endpoint needs an API key: send it as the header `Authorization: Bearer KEY`."
        )
        error = RequestError(HTTPStatus.UNAUTHORIZED, message, code=INVALID_API_KEY)
        answer = JSONResponse(error.body(), error.status, {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
