"""How a pod stops taking requests without refusing one.

1. The preStop hook, GET /drain, begins the drain: /health answers 503, so that the endpoint is taken out of
   the Service, and every answer carries `Connection: close`, so that clients connect again, elsewhere.
   Everything is still answered, since traffic arrives until all nodes have heard of it.
2. After `drain_seconds` the hook returns and the kubelet sends SIGTERM. Without a hook, SIGTERM begins the
   drain itself.
3. Requests in flight are finished, nothing new is accepted, and the process exits 0.

A pod's termination grace period has to hold the drain and the longest answer.
"""

import time
from collections.abc import Callable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RESUME_SECONDS: Final = 30.0
"""A drain that no SIGTERM follows for so long was no pod's end; the kubelet sends it at once."""


class Drain:
    """Whether the server is going away, and for how long it still takes requests."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end: float | None = None
        self._terminating = False

    def begin(self) -> None:
        """Start the drain; beginning again changes nothing."""
        if not self.active:
            self._end = self._clock() + self._seconds

    def terminate(self) -> None:
        """Begin, with no way back."""
        self.begin()
        self._terminating = True

    @property
    def active(self) -> bool:
        """Whether clients should go elsewhere."""
        if self._end is None:
            return False
        return self._terminating or self._clock() < self._end + RESUME_SECONDS

    @property
    def remaining(self) -> float:
        """Seconds until no more requests are expected."""
        return 0 if self._end is None else max(0.0, self._end - self._clock())

    @property
    def over(self) -> bool:
        """Whether the process may end."""
        return self._terminating and self.remaining == 0


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
