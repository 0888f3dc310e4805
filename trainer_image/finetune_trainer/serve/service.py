# SPDX-License-Identifier: Apache-2.0
"""State that the routes share: the engine once it is loaded, the drain, the metrics."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_trainer.contract.serving import DefaultSampling, ServeConfig
from finetune_trainer.model.probe_record import ProbeRecord
from finetune_trainer.serve.errors import MODEL_NOT_FOUND, RequestError
from finetune_trainer.serve.forward_watchdog import ForwardWatchdog
from finetune_trainer.serve.http_middleware import ApiKeys, Drain
from finetune_trainer.serve.served_models import probe_record, read_identities, served_names
from finetune_trainer.serve.serving_metrics import ServingMetrics

if TYPE_CHECKING:
    # These import torch, which takes seconds. The server answers probes and handles signals before that.
    from finetune_trainer.serve.constraint import Grammars
    from finetune_trainer.serve.engine import Engine
    from finetune_trainer.serve.loading import LoadedModels
    from finetune_trainer.serve.prompts import Prompts

ReadT = TypeVar("ReadT")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Objects that exist once the models are loaded."""

    engine: "Engine"
    prompts: "Prompts"
    served: "LoadedModels"
    watchdog: ForwardWatchdog


class ModelThreadDied(Exception):
    """The model thread ended with an error, which is in the log."""


class Service:
    """State of one server."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises StageFailure for model names that conflict."""
        self._config = config
        self.names = served_names(config)
        self.drain = Drain(config.drain_seconds)
        self.metrics = ServingMetrics()
        self.keys = ApiKeys(Path(config.api_keys_path)) if config.api_keys_path is not None else None
        self._loaded: Loaded | None = None
        self._loading: asyncio.Task[Loaded] | None = None
        self._died = False
        # One thread, because a tokenizer is not thread-safe.
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def start(self) -> None:
        """Load the models in the background. Until then the server reports that it is not ready."""
        self._loading = asyncio.create_task(self._load())

    async def close(self) -> None:
        """Wait until loading has ended, then stop the model thread."""
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._loaded is not None:
            self._died = not self._loaded.engine.alive
            await asyncio.to_thread(self._loaded.engine.stop)
            self._loaded.watchdog.stop()
        self._tokenizer.shutdown()

    @property
    def default_sampling(self) -> DefaultSampling:
        """Sampling parameters of requests that do not set them."""
        return self._config.default_sampling

    @property
    def max_choices(self) -> int:
        """Max number of choices of one request: all of them are generated at the same time."""
        return self._config.max_batch_size

    @property
    def deadline_seconds(self) -> int | None:
        """Seconds from the arrival of a request after which it is ended; None without a deadline."""
        return self._config.request_deadline_seconds

    @property
    def ready(self) -> bool:
        """Whether every served model has generated a token and the model thread is alive."""
        return self._loaded is not None and self._loaded.engine.alive

    @property
    def loading(self) -> bool:
        """Whether models are loading, so that no request is in flight."""
        return self._loading is not None and not self._loading.done()

    @property
    def broken(self) -> bool:
        """Whether loading failed or the model thread died, so that the process must restart."""
        return self._loading is not None and self._loading.done() and not self.ready

    def raise_failure(self) -> None:
        """Raise the error that broke the service, if any. Call it after `close`."""
        if self._loading is not None:
            self._loading.result()
        if self._died:
            raise ModelThreadDied("the model thread ended with an error; see the log above")

    def loaded(self) -> Loaded:
        """Return the loaded objects. Raises RequestError (503) while models are loading."""
        if self._loaded is None:
            raise RequestError.loading()
        return self._loaded

    def check_model(self, name: str) -> None:
        """Raise RequestError (404) for a model that is not served."""
        if name not in self.names:
            raise RequestError(
                HTTPStatus.NOT_FOUND,
                f"The model {name!r} does not exist. Served models: {', '.join(self.names)}.",
                param="model",
                code=MODEL_NOT_FOUND,
            )

    @cached_property
    def grammars(self) -> "Grammars":
        """Compiles the schemas of requests. Its library is imported for the first one."""
        from finetune_trainer.serve.constraint import Grammars

        served = self.loaded().served
        return Grammars(served.tokenizer, served.vocabulary, served.stop_ids, served.readers)

    async def tokenize(self, read: Callable[[], ReadT]) -> ReadT:
        """Run `read`, which calls a method of Prompts or Grammars, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer, read)

    async def _load(self) -> Loaded:
        loaded = await asyncio.to_thread(self._load_models)
        self.metrics.queue_depth.set_function(lambda: loaded.engine.waiting)
        self.metrics.running.set_function(lambda: loaded.engine.running)
        for identity in read_identities(self._config):
            self.metrics.begin(*identity)
        self._loaded = loaded
        logger.info("ready: %s", ", ".join(self.names))
        return loaded

    def _records(self) -> dict[str, ProbeRecord]:
        """What the models predicted when they were published, as far as that is known."""
        models = Path(self._config.models_path)
        found = {model.name: probe_record(models, model.folder) for model in self._config.models}
        return {name: record for name, record in found.items() if record is not None}

    def _load_models(self) -> Loaded:
        from finetune_trainer.serve.engine import Engine
        from finetune_trainer.serve.loading import load
        from finetune_trainer.serve.prompts import Prompts
        from finetune_trainer.serve.self_test import generate_one_token_each

        served = load(self._config)
        prompts = Prompts(
            served.tokenizer,
            served.context_length,
            served.vocabulary,
            {model.name: model.chat_template_kwargs for model in self._config.models},
            chat_templates=served.chat_templates,
            readers=served.readers,
            max_tokens=self._config.max_tokens,
        )
        generate_one_token_each(served, prompts, self._records())
        engine = Engine(served, self._config.max_batch_size, self._config.max_queue)
        engine.start()
        watchdog = ForwardWatchdog(lambda: engine.pass_seconds)
        watchdog.start()
        return Loaded(engine, prompts, served, watchdog)
