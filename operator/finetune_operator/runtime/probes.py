# SPDX-License-Identifier: Apache-2.0
"""HTTP server of /healthz, /readyz and, unless they are protected, /metrics."""

import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from finetune_operator.engine.watches import Watches
from finetune_operator.runtime.metricsserver import exposition

logger = logging.getLogger(__name__)

MAX_WATCH_SILENCE_SECONDS: Final = 1500.0
"""Max age of the last sign of life of a watch. Bookmarks come every minute, and lists every ten minutes."""


class ProbeServer:
    """The plain HTTP server of the process.

    Args:
        watches: watches that must be alive.
        registry: metrics to serve.
        outdated: returns what the installed definitions lack; None while that is not known.
    """

    def __init__(
        self,
        watches: Watches,
        registry: CollectorRegistry,
        outdated: Callable[[], tuple[str, ...] | None] = lambda: (),
    ) -> None:
        self._outdated = outdated
        self._watches = watches
        self._registry = registry
        self._runner: web.AppRunner | None = None

    async def start(self, port: int, *, metrics: bool) -> None:
        """Listen; `metrics`: whether everybody may read the metrics here."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        if metrics:
            app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        """Healthy unless a watch is frozen, which only its silence reveals.

        A restart helps only in that case. It does not help if a right is missing, or if the API server does
        not answer a first list.
        """
        ages = self._watches.ages()
        silences = self._watches.silences()
        frozen = sorted(
            resource for resource, silence in silences.items() if silence > MAX_WATCH_SILENCE_SECONDS
        )
        answer = {"watchAgeSeconds": {resource: round(age, 1) for resource, age in sorted(ages.items())}}
        if frozen:
            logger.error("the watches of %s are frozen: this process must be restarted", ", ".join(frozen))
        return web.json_response({**answer, "frozen": frozen}, status=503 if frozen else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        """Ready when the caches are complete, also on standby: such a process is ready to take over.

        A namespace that may not be listed is reported, but does not affect readiness or other namespaces.
        With outdated definitions the process is not ready, so that a rollout keeps the previous operator.
        """
        waiting, outdated = self._watches.waiting_for, self._outdated()
        answer = {"waitingFor": waiting, "leftOut": self._watches.left_out}
        if outdated:
            answer["outdatedDefinitions"] = outdated
        return web.json_response(answer, status=503 if waiting or outdated is None or outdated else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return await exposition(self._registry)
