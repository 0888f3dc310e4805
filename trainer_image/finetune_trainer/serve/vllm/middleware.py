# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware in vLLM's process: what an endpoint adds to vLLM's server.

vLLM alone answers more routes than those of the API, some of them without a key, and has metrics on the same
port. It is healthy before it has answered a request, and while it drains it fails new requests with 500.
"""

import os
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.remote.origins import guard_connections
from finetune_trainer.runtime import configuration
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.errors import MODEL_NOT_READY, RequestError
from finetune_trainer.serve.http_middleware import ApiKeys, CloseConnections, RequestIds, RequireKey
from finetune_trainer.serve.serving_metrics import MeasureRequests
from finetune_trainer.serve.vllm.late_requests import Deadlines, RefuseOverload
from finetune_trainer.serve.vllm.lifetime import Lifetime, end_process
from finetune_trainer.serve.vllm.request_body import CheckBody

ROUTES: Final = {
    "/health": "GET",
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
}
"""Routes that clients reach, with their methods."""


class EndpointMiddleware:
    """Outermost layer of vLLM's server. vLLM passes the layers below it."""

    def __init__(self, app: ASGIApp, lifetime: Lifetime | None = None) -> None:
        """`lifetime`: default: one with the config of the pod, whose errors end the process.

        In a pod, the process of the server can no longer connect to metadata services of clouds and nodes.
        """
        if lifetime is None:
            guard_connections()
        self._engine = app
        self._lifetime = lifetime or Lifetime(_config_of_pod())
        config = self._lifetime.config
        # Behind the check of the body, which names the model of a refused request.
        admitted = RefuseOverload(
            app, config.max_batch_size, config.max_queue, config.request_deadline_seconds
        )
        self._limited: ASGIApp = CheckBody(admitted, self._lifetime.models)
        if config.request_deadline_seconds is not None:
            self._limited = Deadlines(self._limited, config.request_deadline_seconds)
        api: ASGIApp = self._answer
        if config.api_keys_path is not None:
            api = RequireKey(api, ApiKeys(Path(config.api_keys_path)))
        measured = MeasureRequests(RequestIds(api), self._lifetime.metrics)
        self._api = CloseConnections(measured, self._lifetime.drain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the start of the server."""

        async def send_started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._lifetime.start(self._engine, scope["app"])
            await send(message)

        match scope["type"]:
            case "http":
                await self._api(scope, receive, send)
            case "lifespan":
                await self._engine(scope, receive, send_started)
            case _:
                await WebSocketClose()(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope["path"], scope["method"])
        await (error.response() if error else self._limited)(scope, receive, send)

    def _refusal(self, path: str, method: str) -> RequestError | None:
        """The error of a request that must not reach vLLM."""
        if path not in ROUTES:
            return _no_route(HTTPStatus.NOT_FOUND, path, method)
        if method != ROUTES[path]:
            return _no_route(HTTPStatus.METHOD_NOT_ALLOWED, path, method)
        if not self._lifetime.ready:
            return RequestError.loading()
        if self._lifetime.drain.over or (path == "/health" and self._lifetime.drain.active):
            return RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE, "The server is draining.", code=MODEL_NOT_READY
            )
        return None


def _no_route(status: HTTPStatus, path: str, method: str) -> RequestError:
    offered = ", ".join(f"{method} {path}" for path, method in ROUTES.items() if path != "/health")
    return RequestError(status, f"{method} {path}: {status.phrase}. The server has {offered}.")


def _config_of_pod() -> ServeConfig:
    try:
        config = configuration.parse(os.environ.get(CONFIG_ENV))
    except StageFailure as failure:
        end_process(failure)
    if not isinstance(config, ServeConfig):
        end_process(StageFailure(FailureReason.INVALID_CONFIG, f"stage: vLLM does not run {config.stage}"))
    return config
