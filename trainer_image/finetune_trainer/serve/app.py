# SPDX-License-Identifier: Apache-2.0
"""The process of the Transformers engine: an OpenAI-compatible server for one base model and its adapters.

`names` lists the served models, `engine` generates answers, and `drain` stops the process.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.serve import errors
from finetune_trainer.serve.apikeys import RequireKey
from finetune_trainer.serve.drain import CloseConnections
from finetune_trainer.serve.httpserver import DrainingServer, listen
from finetune_trainer.serve.requestids import RequestIds
from finetune_trainer.serve.requestmetrics import MeasureRequests
from finetune_trainer.serve.routes import routes
from finetune_trainer.serve.service import Service


def serve(config: ServeConfig) -> None:
    """Serve until a signal arrives. Raises StageFailure if a model cannot be loaded or the port is in use."""
    service = Service(config)
    server = DrainingServer(
        application(service), service.drain, lambda: service.broken, lambda: service.loading
    )
    server.run(sockets=[listen(config.port)])
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
