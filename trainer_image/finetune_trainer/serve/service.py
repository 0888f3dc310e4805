"""What the routes work with: the engine once it is loaded, the drain, the metrics."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_trainer.contract.configs.serve import ServeConfig
from finetune_trainer.serve.apikeys import ApiKeys
from finetune_trainer.serve.drain import Drain
from finetune_trainer.serve.errors import MODEL_NOT_FOUND, MODEL_NOT_READY, RequestError
from finetune_trainer.serve.modelidentity import identities
from finetune_trainer.serve.names import served_names
from finetune_trainer.serve.passwatchdog import PassWatchdog
from finetune_trainer.serve.servingmetrics import ServingMetrics

if TYPE_CHECKING:
    # They import torch, which takes seconds: the server answers probes and takes signals before.
    from finetune_trainer.serve.engine import Engine
    from finetune_trainer.serve.prompts import Prompts

InputT = TypeVar("InputT")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What exists once the models do."""

    engine: "Engine"
    prompts: "Prompts"
    watchdog: PassWatchdog


class ModelThreadDied(Exception):
    """The model thread ended by an error; the log has it."""


class Service:
    """State of one server."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises StageFailure for names that cannot be served together."""
        self._config = config
        self.names = served_names(config)
        self.drain = Drain(config.drain_seconds)
        self.metrics = ServingMetrics()
        self.keys = ApiKeys(Path(config.api_keys_path)) if config.api_keys_path is not None else None
        self._loaded: Loaded | None = None
        self._loading: asyncio.Task[Loaded] | None = None
        self._died = False
        # One thread: a tokenizer is not made to be used by several at once.
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def start(self) -> None:
        """Load in the background; until that is done the server answers that it is not ready."""
        self._loading = asyncio.create_task(self._load())

    async def close(self) -> None:
        """Wait for a load under way, then end the model thread."""
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._loaded is not None:
            self._died = not self._loaded.engine.alive
            await asyncio.to_thread(self._loaded.engine.stop)
            self._loaded.watchdog.stop()
        self._tokenizer.shutdown()

    @property
    def ready(self) -> bool:
        """Whether every served model has generated a token and the model thread works."""
        return self._loaded is not None and self._loaded.engine.alive

    @property
    def loading(self) -> bool:
        """Whether models are loaded just now, so that no request is in flight."""
        return self._loading is not None and not self._loading.done()

    @property
    def broken(self) -> bool:
        """Whether loading failed or the model thread died, so that only a new process helps."""
        return self._loading is not None and self._loading.done() and not self.ready

    def raise_failure(self) -> None:
        """Once closed: raise what broke the service, if anything did."""
        if self._loading is not None:
            self._loading.result()
        if self._died:
            raise ModelThreadDied("the model thread ended by an error; the log above has it")

    def loaded(self) -> Loaded:
        """The engine; raises RequestError (503) while there is none."""
        if self._loaded is None:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The model is still loading: try again in a few seconds.",
                code=MODEL_NOT_READY,
                headers={"Retry-After": "5"},
            )
        return self._loaded

    def check_model(self, name: str) -> None:
        """Raise RequestError (404) for a model that is not served."""
        if name not in self.names:
            raise RequestError(
                HTTPStatus.NOT_FOUND,
                f"The model {name!r} does not exist. Served are: {', '.join(self.names)}.",
                param="model",
                code=MODEL_NOT_FOUND,
            )

    async def tokenize(self, read: Callable[[InputT], list[int]], prompt: InputT) -> list[int]:
        """Run `read`, a method of Prompts, without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer, read, prompt)

    async def _load(self) -> Loaded:
        loaded = await asyncio.to_thread(self._load_models)
        self.metrics.queue_depth.set_function(lambda: loaded.engine.waiting)
        self.metrics.running.set_function(lambda: loaded.engine.running)
        for identity in identities(self._config):
            self.metrics.begin(*identity)
        self._loaded = loaded
        logger.info("ready: %s", ", ".join(self.names))
        return loaded

    def _load_models(self) -> Loaded:
        from finetune_trainer.serve.engine import Engine
        from finetune_trainer.serve.loading import load
        from finetune_trainer.serve.prompts import Prompts
        from finetune_trainer.serve.selftest import generate_one_token_each

        served = load(self._config)
        prompts = Prompts(served.tokenizer, served.context_length, served.vocabulary)
        generate_one_token_each(served, prompts)
        engine = Engine(served, self._config.max_batch_size, self._config.max_queue)
        engine.start()
        watchdog = PassWatchdog(lambda: engine.pass_seconds)
        watchdog.start()
        return Loaded(engine, prompts, watchdog)
