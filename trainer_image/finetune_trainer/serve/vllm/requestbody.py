# SPDX-License-Identifier: Apache-2.0
"""The body of a request to vLLM, read once as a whole before vLLM reads it."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.constraintlimits import values_of
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.requestmetrics import UNKNOWN_MODEL, RequestMeasurement
from finetune_trainer.serve.vllm.requestfields import check_fields, prompts_of

MAX_BODY_BYTES: Final = 1024 * 1024
"""As in the built-in engine."""
MAX_TOKENS_BODY_BYTES: Final = 16 * 1024 * 1024
"""Of a completion whose prompt is a list of token ids. Enough for two million of them."""
MAX_SIGNS: Final[Mapping[bytes, int]] = {b"{": 100, b"[": 1000, b'"': 1000, b",": 2_100_000}
"""Max numbers of signs in a body above MAX_BODY_BYTES, which are counted before it is parsed.

Each value of JSON except the first one follows one of these signs, so they limit the number of values.
"""
INLINE_BYTES: Final = 4096
"""Size to which a body is read within the event loop. Reading it takes less than passing it to a thread."""


class CheckBody:
    """ASGI layer that refuses bodies that could end or hold up vLLM, and notes the model in the measurement.

    vLLM has no limit of the size, and compiles the schemas of clients recursively within its processes. Its
    parser may be another one, so a body that this layer cannot read does not reach vLLM either.
    """

    def __init__(self, app: ASGIApp, served: Sequence[str]) -> None:
        """`served`: names of the models that the server has. vLLM takes the first one by default."""
        self._app = app
        self._served = served
        # One, so that bodies wait for each other and not the streams of the event loop for them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="request-body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. If its client disconnects before the end of the body, vLLM does not get it."""
        measurement = RequestMeasurement.find(scope)
        if measurement is None:
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        try:
            body = await _read(receive, path)
            if body is None:
                return
            if len(body) <= INLINE_BYTES:
                self._check(body, path, measurement)
            else:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._check, body, path, measurement)
        except RequestError as error:
            await error.response()(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)

    def _check(self, body: bytes, path: str, measurement: RequestMeasurement) -> None:
        """Raises RequestError."""
        request = parsed(body)
        name = request.get("model") or self._served[0]
        measurement.model = name if name in self._served else UNKNOWN_MODEL
        check_fields(request, path)


def parsed(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a body. Raises RequestError if it is something else, or too large."""
    is_large = len(body) > MAX_BODY_BYTES
    if is_large and any(body.count(sign) > limit for sign, limit in MAX_SIGNS.items()):
        raise _too_large()
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError.invalid(f"The request body is not valid JSON: {error}.") from error
    if not isinstance(request, dict):
        raise RequestError.invalid("The request body is not a JSON object.")
    if is_large and not _is_large_by_tokens(request):
        raise _too_large()
    return request


def _is_large_by_tokens(request: Mapping[str, Any]) -> bool:
    others = ((name, value) for name, value in request.items() if name != "prompt")
    texts = (value for name, each in others for value, _ in values_of(each, name) if isinstance(value, str))
    return (
        all(isinstance(each, list) for each in prompts_of(request)) and sum(map(len, texts)) <= MAX_BODY_BYTES
    )


def _too_large() -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is larger than {MAX_BODY_BYTES} bytes. Only a completion whose prompt is a list of"
        f" token ids may have up to {MAX_TOKENS_BODY_BYTES}. Shorten the request.",
    )


async def _read(receive: Receive, path: str) -> bytes | None:
    """The whole body; None if the client disconnected. Raises RequestError if it is too large."""
    limit = MAX_TOKENS_BODY_BYTES if path == "/v1/completions" else MAX_BODY_BYTES
    parts: list[bytes] = []
    size = 0
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)
    return None
