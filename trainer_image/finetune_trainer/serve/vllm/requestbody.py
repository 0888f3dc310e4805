# SPDX-License-Identifier: Apache-2.0
"""The body of a request to vLLM, read once as a whole before vLLM reads it."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.constraintlimits import check_schema, check_text
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.grammarlimits import check_grammar, check_regex
from finetune_trainer.serve.requestmetrics import UNKNOWN_MODEL, RequestMeasurement

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Enough for the token ids of two million tokens."""


class CheckBody:
    """ASGI layer that refuses a body which could end vLLM, and notes its model in the measurement.

    vLLM has no limit of the size, and compiles the schemas of clients recursively within its processes.
    """

    def __init__(self, app: ASGIApp, served: Sequence[str]) -> None:
        """`served`: names of the models that the server has. vLLM takes the first one by default."""
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. If its client disconnects before the end of the body, vLLM does not get it."""
        measurement = RequestMeasurement.find(scope)
        if measurement is None:
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(receive)
            if body is None:
                return
            # As vLLM reads it. Bodies that are not JSON get vLLM's own error.
            request = _parsed(body)
            measurement.model = self._model(request)
            _check(request or {})
        except RequestError as error:
            await error.response()(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body, request

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)

    def _model(self, request: Mapping[str, Any] | None) -> str:
        if request is None:
            return UNKNOWN_MODEL
        name = request.get("model") or self._served[0]
        return name if name in self._served else UNKNOWN_MODEL


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if the client disconnected. Raises RequestError if it is too large."""
    parts: list[bytes] = []
    size = 0
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The request body is larger than {MAX_BODY_BYTES} bytes.",
            )
        if not message.get("more_body", False):
            return b"".join(parts)
    return None


def _parsed(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object; None if the body is something else."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def _check(request: Mapping[str, Any]) -> None:
    """Check what vLLM compiles. Raises RequestError if it is beyond a limit, or if text in it is not JSON."""
    for field in ("response_format", "tools"):
        check_schema(request.get(field), field)
    settings = request.get("structured_outputs")
    for name, value in settings.items() if isinstance(settings, dict) else ():
        _check_setting(name, value, f"structured_outputs.{name}")


def _check_setting(name: str, value: object, field: str) -> None:
    if not isinstance(value, str):
        check_schema(value, field)
        return
    check_text(value, field)
    if name == "grammar":
        check_grammar(value, field)
    elif name in {"regex", "whitespace_pattern"}:
        check_regex(value, field)
    elif name in {"json", "structural_tag"}:
        check_schema(_of_text(value, field), field)


def _of_text(text: str, field: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise RequestError.invalid(f"{field}: not valid JSON: {error}", field) from error


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: parsers disagree about which of two equal ones counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found
