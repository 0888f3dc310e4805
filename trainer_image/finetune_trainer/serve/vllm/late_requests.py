# SPDX-License-Identifier: Apache-2.0
"""Requests that vLLM would answer too late: refused at once, or ended at their deadline."""

import asyncio
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.admission import AdmissionControl, is_returning
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.serving_metrics import RequestMeasurement

SEND_FAILS: Final = (2, 4)
"""Version of the ASGI specification since which sending to a client that has disconnected is an OSError.

Starlette then does not listen for the disconnect of the client of a stream.
"""


class Deadlines:
    """ASGI middleware that ends each request after some seconds.

    To vLLM it looks as if the client had disconnected, so vLLM stops generating. The client gets 504, or, if
    a stream has begun, the error as its last event.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        loop = asyncio.get_running_loop()
        expiry = loop.create_future()
        started = complete = False
        send_fails = _version(scope) >= SEND_FAILS

        async def receive_in_time() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                await asyncio.wait({message, expiry}, return_when=asyncio.FIRST_COMPLETED)
                return {"type": "http.disconnect"} if expiry.done() else message.result()
            finally:
                message.cancel()

        async def send_in_time(message: Message) -> None:
            nonlocal started, complete
            if not expiry.done():
                started = True
                complete = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send(message)
            elif send_fails:
                raise OSError("the deadline of the request is over")

        timer = loop.call_later(self._seconds, expiry.set_result, None)
        try:
            await self._app(scope, receive_in_time, send_in_time)
        except (OSError, ClientDisconnect):
            if not expiry.done():
                raise
        finally:
            timer.cancel()
        if expiry.done() and not complete:
            error = RequestError.deadline()
            measurement = RequestMeasurement.find(scope)
            if measurement is not None:
                measurement.failure = error.status
            if started:
                event = f"data: {json.dumps(error.body())}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": False})
            else:
                await error.response()(scope, receive, send)


def _version(scope: Scope) -> tuple[int, ...]:
    """Version of the ASGI specification that the server follows."""
    return tuple(map(int, scope.get("asgi", {}).get("spec_version", "2.0").split(".")))


_ANSWER: Final = 1
"""Unit of the throughput: the middleware does not see tokens."""


class RefuseOverload:
    """ASGI middleware that refuses a request with 429 if its turn would come too late.

    It counts requests in flight: those beyond the slots wait in vLLM. How many vLLM answers at the same time
    also depends on its memory, which is not seen here: requests that wait for memory count as running.
    """

    def __init__(
        self,
        app: ASGIApp,
        slots: int,
        max_queue: int,
        deadline_seconds: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slots`: requests that vLLM answers at the same time. `max_queue`: requests that may wait."""
        self._app = app
        self._slots = slots
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._admission = AdmissionControl(slots, max_queue, clock)
        self._in_flight = 0
        self._changed_at = clock()
        """When the last request was answered, or the slots were last used up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        measurement = RequestMeasurement.find(scope)
        if measurement is None:
            await self._app(scope, receive, send)
            return
        began, deadline = self._clock(), self._deadline_seconds
        refusal = self._admission.refusal(
            max(self._in_flight - self._slots, 0),
            remaining_seconds=None if deadline is None else measurement.remaining(deadline),
            returning=is_returning(Headers(scope=scope)),
            unfinished_seconds=began - self._changed_at if self._in_flight > self._slots else 0,
        )
        if refusal is not None:
            measurement.shed(refusal.reason)
            await RequestError.overloaded(refusal).response()(scope, receive, send)
            return
        status: int | None = None

        async def send_measured(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status == HTTPStatus.OK and not message.get("more_body", False):
                self._measure(began)

        if self._in_flight == self._slots:
            self._changed_at = began
        self._in_flight += 1
        try:
            await self._app(scope, receive, send_measured)
        finally:
            self._in_flight -= 1

    def _measure(self, began: float) -> None:
        """Add the answer to a request that began then to the measured throughput."""
        now, throughput = self._clock(), self._admission.throughput
        is_full = self._in_flight > self._slots
        # A full batch of such answers would end one in each of these intervals.
        throughput.measure(_ANSWER, now - self._changed_at if is_full else (now - began) / self._slots)
        throughput.answered(_ANSWER)
        self._changed_at = now
