# SPDX-License-Identifier: Apache-2.0
"""The life of a vLLM server: metrics and self-test at its start, a drain at its end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from starlette.applications import Starlette
from starlette.types import ASGIApp

from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime import logs, termination
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.drain import Drain
from finetune_trainer.serve.modelidentity import identities
from finetune_trainer.serve.names import served_names
from finetune_trainer.serve.requestmetrics import RequestMetrics
from finetune_trainer.serve.vllm.computation import computation_of
from finetune_trainer.serve.vllm.selftest import check_models

logger = logging.getLogger(__name__)


def end_process(failure: StageFailure) -> NoReturn:
    """Write the failure to the log and the termination message, and exit with its code.

    As a trainer process ends. vLLM would report an error of the middleware as 500 to each client.
    """
    text = f"{failure.reason}: {failure.message}"
    logger.error(text)
    termination.write(text)
    sys.stdout.flush()
    os._exit(failure.exit_code)


class Lifetime:
    """State of one server, from its config.

    `end_process` is called with the failure of a check. `registry` has the metrics of the server.
    """

    def __init__(
        self,
        config: ServeConfig,
        end_process: Callable[[StageFailure], object] = end_process,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.config = config
        self.models = served_names(config)
        self.metrics = RequestMetrics(registry)
        for model in self.models:
            self.metrics.begin_requests(model)
        self.drain = Drain(config.drain_seconds)
        self.ready = False
        """Whether every model has generated a token and passed its checks."""
        self._end_process = end_process
        self._task: asyncio.Task[None] | None = None

    def start(self, engine: ASGIApp, server: Starlette) -> None:
        """Begin when vLLM's server has started. Must be called in the main thread, with its event loop.

        Args:
            engine: layers of the server below the middleware.
            server: vLLM's application.
        """
        logs.configure_own()
        # vLLM's metrics are in the default registry, because a pod has one API process.
        try:
            start_http_server(self.config.metrics_port, registry=self.metrics.registry)
        except OSError as error:
            logger.warning(
                "metrics are not served, because port %d cannot be used: %s", self.config.metrics_port, error
            )
        loop = asyncio.get_running_loop()
        # In the place of vLLM's own handler, which fails new requests at once.
        loop.add_signal_handler(signal.SIGTERM, self._begin_drain)
        self._task = loop.create_task(self.test(engine, server))

    async def test(self, engine: ASGIApp, server: Starlette) -> None:
        """Check the models, after which the server is ready. A failure ends the process."""
        try:
            await check_models(engine, server, self.config, computation_of(server))
        except StageFailure as failure:
            self._end_process(failure)
            return
        except Exception as error:
            logger.exception("the self-test ended with an unexpected error")
            self._end_process(
                StageFailure(
                    FailureReason.INTERNAL,
                    f"{type(error).__name__}: {error}; the pod's log has the traceback; please report it",
                    ExitCode.INTERNAL,
                )
            )
            return
        for identity in identities(self.config):
            self.metrics.model_info.labels(*identity).set(1)
        self.ready = True
        logger.info("ready")

    def _begin_drain(self) -> None:
        if self.drain.active:
            return
        self.drain.begin()
        logger.info("draining for %g seconds", self.config.drain_seconds)
        # vLLM handles SIGINT as it handles SIGTERM: it finishes the requests in flight, and exits.
        asyncio.get_running_loop().call_later(self.config.drain_seconds, signal.raise_signal, signal.SIGINT)
