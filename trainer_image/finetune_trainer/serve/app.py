"""The Transformers engine's process: an OpenAI-compatible server over one base model and its adapters.

What is served: `names`. How answers are made: `engine`. How the process stops: `drain`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from finetune_trainer.contract.configs.serve import ServeConfig
from finetune_trainer.serve import errors
from finetune_trainer.serve.apikeys import RequireKey
from finetune_trainer.serve.drain import CloseConnections
from finetune_trainer.serve.httpserver import DrainingServer, listen
from finetune_trainer.serve.routes import routes
from finetune_trainer.serve.service import Service
from finetune_trainer.serve.servingmetrics import MeasureRequests


def serve(config: ServeConfig) -> None:
    """Serve until a signal ends it. Raises StageFailure: a model cannot be loaded, or the port is taken."""
    service = Service(config)
    server = DrainingServer(
        application(service), service.drain, lambda: service.broken, lambda: service.loading
    )
    server.run(sockets=[listen(config.port)])
    service.raise_failure()


def application(service: Service) -> ASGIApp:
    """The ASGI application; loads the models when it starts."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    # No documentation routes: the API is OpenAI's, and whoever reaches the port should find nothing else.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    errors.install(app)
    app.include_router(routes(service))
    # Outside of the framework, so that its own answers pass through them too.
    guarded = app if service.keys is None else RequireKey(app, service.keys)
    return CloseConnections(MeasureRequests(guarded, service.metrics), service.drain)
