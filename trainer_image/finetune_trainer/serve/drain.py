# SPDX-License-Identifier: Apache-2.0
"""Graceful shutdown: a pod stops taking requests without refusing any.

1. SIGTERM starts the drain: /health returns 503, and every response has `Connection: close`, so that clients
   reconnect to another pod. The server still answers every request, because traffic arrives until all nodes
   have removed the endpoint.
2. After `drain_seconds` the server accepts no more connections, finishes the requests in flight, and exits 0.

No route starts a drain, because any client of the Service could then remove a pod from it. A pod needs no
preStop hook, because the kubelet sends SIGTERM when the endpoint leaves the Service.
The pod's termination grace period must cover the drain and the longest response.
"""

import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Drain:
    """State of the drain: whether it has started, and until when the server takes requests."""

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
