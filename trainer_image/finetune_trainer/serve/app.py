# SPDX-License-Identifier: Apache-2.0
"""The process of the Transformers engine: an OpenAI-compatible server for one base model and its adapters.

`served_models` lists the models, `engine` generates answers, and the drain of `http_middleware` stops the
process.
"""

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from finetune_trainer.contract.environment import SERVE_HOST_ENV
from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve import errors
from finetune_trainer.serve.http_middleware import CloseConnections, Drain, RequestIds, RequireKey
from finetune_trainer.serve.routes import routes
from finetune_trainer.serve.service import Service
from finetune_trainer.serve.serving_metrics import MeasureRequests

_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than clients keep idle connections. If the server closed one first, a new request could fail."""


def listen(port: int, host: str = "") -> socket.socket:
    """Open a socket on this address, or on all IPv4 and IPv6 addresses.

    Raises StageFailure if the port is in use.
    """
    dual = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"port: cannot listen on port {port}: {error.strerror}."
        ) from error


class DrainingServer(uvicorn.Server):
    """Server that exits with code 0 on SIGTERM, after the drain and the requests in flight.

    While models are loading there are no requests, and the process exits at once: the loading thread cannot
    be interrupted. SIGINT skips the drain; a second one also drops the requests in flight.
    """

    def __init__(
        self, app: ASGIApp, drain: Drain, broken: Callable[[], bool], loading: Callable[[], bool]
    ) -> None:
        """`broken`: returns whether to exit without a signal, because the models cannot be served."""
        config = uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        super().__init__(config)
        self._drain = drain
        self._broken = broken
        self._loading = loading

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Handle a signal. Uvicorn's own method re-raises it at exit, which prevents exit code 0."""
        if self._loading():
            os._exit(ExitCode.OK)
        if sig == signal.SIGTERM:
            self._drain.begin()
        elif self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop. Called 10 times per second."""
        if self._drain.over or self._broken():
            self.should_exit = True
        return await super().on_tick(counter)


def serve(config: ServeConfig) -> None:
    """Serve until a signal arrives. Raises StageFailure if a model cannot be loaded or the port is in use."""
    service = Service(config)
    server = DrainingServer(
        application(service), service.drain, lambda: service.broken, lambda: service.loading
    )
    server.run(sockets=[listen(config.port, os.environ.get(SERVE_HOST_ENV, ""))])
    service.raise_failure()


def application(service: Service) -> ASGIApp:
    """Build the ASGI application, which loads the models at startup."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    # No documentation routes: the server offers the OpenAI API and nothing else.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    errors.install(app)
    app.include_router(routes(service))
    # Outside of the framework, so that the framework's own responses pass through the middleware too.
    guarded = app if service.keys is None else RequireKey(app, service.keys)
    return CloseConnections(MeasureRequests(RequestIds(guarded), service.metrics), service.drain)
