# SPDX-License-Identifier: Apache-2.0
"""HTTPS server of /metrics for callers that may read it."""

import asyncio
import logging
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetune_operator.engine.errors import ApiError
from finetune_operator.report import certificate
from finetune_operator.report.reviewedtokens import TooManyReviews
from finetune_operator.runtime.metricsaccess import PATH, MetricsAccess

logger = logging.getLogger(__name__)

FILES: Final = ("tls.crt", "tls.key")


class MetricsServer:
    """Serves the metrics over TLS, and asks the API server who the caller is and whether it may read them.

    Args:
        access: decides about callers.
        registry: metrics to serve.
    """

    def __init__(self, access: MetricsAccess, registry: CollectorRegistry) -> None:
        self._access = access
        self._registry = registry
        self._runner: web.AppRunner | None = None

    async def start(self, port: int, context: ssl.SSLContext) -> None:
        app = web.Application()
        app.router.add_get(PATH, self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port, ssl_context=context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return web.Response(status=401, text="send a token as Authorization: Bearer\n")
        try:
            refusal = await self._access.refusal(token, request.remote or "")
        except TooManyReviews:
            return web.Response(status=429, text="too many unknown tokens\n")
        except ApiError as error:
            logger.warning("cannot review the token of a scrape: %s", error)
            return web.Response(status=503, text="the API server did not review the token\n")
        if refusal is not None:
            return web.Response(status=refusal.status, text=f"{refusal.reason}\n")
        return await exposition(self._registry)


class _Collected(Collector):
    """Metrics that have been collected."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def exposition(registry: Collector) -> web.Response:
    """The response with the metrics as text.

    The event loop reads the caches, and a thread makes the text: with 2,000 endpoints each takes 60 ms.
    """
    text = await asyncio.to_thread(generate_latest, _Collected(registry.collect()))
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def tls_context(folder: str, service: str, namespace: str) -> ssl.SSLContext:
    """TLS context with the certificate in a folder, or with a new one that no CA has signed.

    Args:
        folder: folder with tls.crt and tls.key, which are read again when they change; empty: none.
        service: Service of the metrics, for a new certificate.
        namespace: namespace of the Service.

    Raises:
        OSError: a file cannot be read, or is not a certificate or key.
    """
    if not folder:
        return certificate.make(service, namespace, datetime.now(UTC)).context()
    files = [Path(folder, name) for name in FILES]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loaded: list[float] = []

    def load() -> None:
        times = [file.stat().st_mtime for file in files]
        if times != loaded:
            context.load_cert_chain(files[0], files[1])
            loaded[:] = times

    def reload(*_: object) -> None:
        """Load a renewed certificate for the handshakes after this one."""
        try:
            load()
        except OSError as error:
            logger.warning("cannot read the renewed certificate of the metrics: %s", error)

    load()
    context.sni_callback = reload
    return context
