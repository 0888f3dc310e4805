"""How a pod stops taking requests without refusing one.

1. SIGTERM begins the drain: /health answers 503, and every answer carries `Connection: close`, so that
   clients connect again, elsewhere. Every request is still answered, because traffic arrives until all
   nodes have removed the endpoint.
2. After `drain_seconds` the server accepts no more connections, finishes the requests in flight, and exits 0.

No route begins a drain: a client of the Service could take an endpoint out of it. A pod needs no preStop
hook, because the kubelet sends SIGTERM at the moment at which the endpoint leaves the Service.
A pod's termination grace period has to hold the drain and the longest answer.
"""

import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Drain:
    """Whether the server is going away, and for how long it still takes requests."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end: float | None = None

    def begin(self) -> None:
        """Start the drain; there is no way back, and beginning again changes nothing."""
        if self._end is None:
            self._end = self._clock() + self._seconds

    @property
    def active(self) -> bool:
        """Whether clients should go elsewhere."""
        return self._end is not None

    @property
    def over(self) -> bool:
        """Whether no more requests are expected, so that the process may end."""
        return self._end is not None and self._clock() >= self._end


class CloseConnections:
    """ASGI middleware: during a drain, no connection outlives its answer."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.active:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_closing)
