# SPDX-License-Identifier: Apache-2.0
"""HTTP servers of the process: probes, and metrics for callers that may read them.

A plain HTTP server has /healthz, /readyz and, unless they are protected, /metrics. Protected metrics have an
HTTPS server, for callers that Kubernetes authenticates and authorizes.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.http_server import PortListener, make_certificate
from finetune_operator.engine.resources import SUBJECT_ACCESS_REVIEW, TOKEN_REVIEW
from finetune_operator.engine.token_reviews import ReviewedTokens, TooManyReviews
from finetune_operator.engine.watches import Watches

METRICS_PATH: Final = "/metrics"
REMEMBERED_SECONDS: Final = 60.0
"""Time for which a decision holds, so that Prometheus causes two reviews a minute."""


@dataclass(frozen=True, slots=True)
class MetricsRefusal:
    """Why a caller may not read the metrics.

    Attributes:
        status: HTTP status, 401 or 403.
        reason: sentence for the caller.
    """

    status: int
    reason: str


class MetricsAccess:
    """Reviews the tokens of callers: a TokenReview, and a SubjectAccessReview for `get` on the path /metrics.

    Args:
        cluster: client whose user may create both reviews.
    """

    def __init__(self, cluster: KubernetesClient) -> None:
        self._cluster = cluster
        self._reviewed = ReviewedTokens(
            self._review, seconds=lambda _: REMEMBERED_SECONDS, is_accepted=lambda refusal: refusal is None
        )

    async def refusal(self, token: str, source: str) -> MetricsRefusal | None:
        """Why the caller with this token is refused; None if it may read the metrics.

        Args:
            token: token of the request.
            source: address of the request.

        Raises:
            TooManyReviews: the limit of reviews is reached; try again later.
            ApiError: the API server did not review the token.
        """
        return await self._reviewed.result(token, source)

    async def _review(self, token: str) -> MetricsRefusal | None:
        kind = {"apiVersion": TOKEN_REVIEW.api_version, "kind": TOKEN_REVIEW.kind}
        status = (await self._cluster.create({**kind, "spec": {"token": token}})).get("status", {})
        if not status.get("authenticated"):
            return MetricsRefusal(401, "the API server does not know this token")
        user = status["user"]
        kind = {"apiVersion": SUBJECT_ACCESS_REVIEW.api_version, "kind": SUBJECT_ACCESS_REVIEW.kind}
        spec = {
            "user": user["username"],
            "nonResourceAttributes": {"path": METRICS_PATH, "verb": "get"},
            **{key: user[key] for key in ("uid", "groups", "extra") if user.get(key)},
        }
        answer = await self._cluster.create({**kind, "spec": spec})
        if not answer.get("status", {}).get("allowed"):
            return MetricsRefusal(403, f"{user['username']} may not get the URL {METRICS_PATH}")
        return None


logger = logging.getLogger(__name__)

TLS_FILES: Final = ("tls.crt", "tls.key")


class MetricsServer(PortListener):
    """Serves the metrics over TLS, and asks the API server who the caller is and whether it may read them.

    Args:
        access: decides about callers.
        registry: metrics to serve.
    """

    def __init__(self, access: MetricsAccess, registry: CollectorRegistry) -> None:
        super().__init__()
        self._access = access
        self._registry = registry

    async def start(self, port: int, context: ssl.SSLContext) -> None:
        app = web.Application()
        app.router.add_get(METRICS_PATH, self._metrics)
        await self.listen(app, port, context)

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
        return await render_metrics(self._registry)


class _Collected(Collector):
    """Metrics that have been collected."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def render_metrics(registry: Collector) -> web.Response:
    """The response with the metrics as text.

    The event loop reads the caches, and a thread makes the text: with 2,000 endpoints each takes 60 ms.
    """
    text = await asyncio.to_thread(generate_latest, _Collected(registry.collect()))
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def make_tls_context(folder: str, service: str, namespace: str) -> ssl.SSLContext:
    """TLS context with the certificate in a folder, or with a new one that no CA has signed.

    Args:
        folder: folder with tls.crt and tls.key, which are read again when they change; empty: none.
        service: Service of the metrics, for a new certificate.
        namespace: namespace of the Service.

    Raises:
        OSError: a file cannot be read, or is not a certificate or key.
    """
    if not folder:
        return make_certificate(service, namespace, datetime.now(UTC)).context()
    files = [Path(folder, name) for name in TLS_FILES]
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


MAX_WATCH_SILENCE_SECONDS: Final = 1500.0
"""Max age of the last sign of life of a watch. Bookmarks come every minute, and lists every ten minutes."""


class ProbeServer(PortListener):
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
        super().__init__()
        self._outdated = outdated
        self._watches = watches
        self._registry = registry

    async def start(self, port: int, *, metrics: bool) -> None:
        """Listen; `metrics`: whether everybody may read the metrics here."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        if metrics:
            app.router.add_get(METRICS_PATH, self._metrics)
        await self.listen(app, port)

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
        return await render_metrics(self._registry)
