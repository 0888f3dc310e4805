# SPDX-License-Identifier: Apache-2.0
"""An id for each request, in the header of its response and in the engine's log.

A client or a gateway can choose the id. OpenAI's client shows it as `_request_id`.
"""

import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER: Final = "x-request-id"

_VALID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Ids from clients end up in logs."""


class RequestIds:
    """ASGI middleware that keeps a request's valid id or creates one, and returns it in the response."""

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
