# SPDX-License-Identifier: Apache-2.0
"""The deadline of requests, which vLLM does not have."""

import asyncio
import json
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.requestmetrics import RequestMeasurement

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
