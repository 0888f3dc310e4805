"""The model that a request to vLLM names."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.requestmetrics import UNKNOWN_MODEL, RequestMeasurement


class NoteModel:
    """ASGI layer that notes the model of a request in its measurement, as vLLM reads the body."""

    def __init__(self, app: ASGIApp, served: Sequence[str]) -> None:
        """`served`: names of the models that the server has. vLLM takes the first one by default."""
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        measurement = RequestMeasurement.find(scope)
        if measurement is None:
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []

        async def receive_noted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    measurement.model = self._model(b"".join(parts))
                    parts.clear()
            return message

        await self._app(scope, receive_noted, send)

    def _model(self, body: bytes) -> str:
        try:
            request: Any = json.loads(body)
        except (ValueError, RecursionError):
            return UNKNOWN_MODEL
        if not isinstance(request, dict):
            return UNKNOWN_MODEL
        name = request.get("model") or self._served[0]
        return name if name in self._served else UNKNOWN_MODEL
