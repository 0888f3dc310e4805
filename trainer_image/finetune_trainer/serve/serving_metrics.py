# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of served models and of requests to them, for both engines.

Requests for other models share the label `unknown`.
"""

import time
from http import HTTPStatus
from typing import Final, Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_trainer.serve.admission import SHED_REASONS, ShedReason

UNKNOWN_MODEL: Final = "unknown"
CLIENT_CLOSED_REQUEST: Final = 499
"""Status code of a request whose client disconnected before the response was complete."""
BUCKETS_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_MEASURED_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_RECORD: Final = "measurement"


class RequestMetrics:
    """Metrics of the models of one server and of the requests to it, in this registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.model_info = Gauge(
            "finetune_serve_model_info",
            "Always 1; digest and type of the model served under this name. Name base: the base model",
            ["model", "digest", "type"],
            registry=registry,
        )
        self.requests = Counter(
            "finetune_serve_requests",
            "Number of finished generation requests; code 499: the client disconnected",
            ["model", "code"],
            registry=registry,
        )
        self.shed = Counter(
            "finetune_serve_requests_shed",
            "Number of generation requests that were refused with 429; queue_full: too many requests waited,"
            " too_late: the answer would have begun too late, waited: it had not begun in time",
            ["model", "reason"],
            registry=registry,
        )
        self.duration = Histogram(
            "finetune_serve_request_duration_seconds",
            "Time from the request to the end of its response, for complete responses",
            ["model"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )

    def begin_requests(self, model: str) -> None:
        """Create the series of a served model, starting at 0."""
        for code in (HTTPStatus.OK, CLIENT_CLOSED_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR):
            self.requests.labels(model, str(int(code)))
        for reason in SHED_REASONS:
            self.shed.labels(model, reason)
        self.duration.labels(model)

    def measure(self) -> "RequestMeasurement":
        """Measurement of a request that arrives now."""
        return RequestMeasurement(self)


class RequestMeasurement:
    """Measurement of one generation request. The routes fill it in."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self._requests = metrics
        self._start = time.monotonic()
        self.model = UNKNOWN_MODEL
        self.code: int = CLIENT_CLOSED_REQUEST
        self.failure: HTTPStatus | None = None
        """Status of a stream that failed after its status was sent."""

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """Return the measurement of the request with this scope."""
        measurement = scope[_RECORD]
        assert isinstance(measurement, cls)  # noqa: S101 - set by MeasureRequests
        return measurement

    @classmethod
    def find(cls, scope: Scope) -> Self | None:
        """Return the measurement of the request with this scope; None if it is not measured."""
        return cls.of(scope) if _RECORD in scope else None

    def remaining(self, seconds: float) -> float:
        """What remains of this many seconds from the arrival of the request."""
        return self._start + seconds - time.monotonic()

    def shed(self, reason: ShedReason) -> None:
        """Count the request as refused because of load."""
        self._requests.shed.labels(self.model, reason).inc()

    def end(self) -> None:
        """Count the finished request."""
        code = self.failure or self.code
        self._requests.requests.labels(self.model, str(int(code))).inc()
        if code == HTTPStatus.OK:
            self._requests.duration.labels(self.model).observe(time.monotonic() - self._start)


class MeasureRequests:
    """ASGI middleware that counts generation requests, however they end."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] not in _MEASURED_PATHS:
            await self._app(scope, receive, send)
            return
        measurement = scope[_RECORD] = self._metrics.measure()
        status = CLIENT_CLOSED_REQUEST

        async def send_measured(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                measurement.code = status

        try:
            await self._app(scope, receive, send_measured)
        finally:
            measurement.end()


_TOKEN_BUCKETS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)


class ServingMetrics(RequestMetrics):
    """All metrics of one server."""

    def __init__(self) -> None:
        # Otherwise each series gets a second one with its creation time, which nothing reads.
        disable_created_metrics()
        super().__init__(CollectorRegistry())
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.tokens = Counter(
            "finetune_serve_tokens",
            "Number of prompt tokens read and of completion tokens generated",
            ["model", "kind"],
            registry=self.registry,
        )
        self.time_to_first_token = Histogram(
            "finetune_serve_time_to_first_token_seconds",
            "Time from the request to its first generated token",
            ["model"],
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.inter_token_latency = Histogram(
            "finetune_serve_inter_token_latency_seconds",
            "Time between two generated tokens of an answer",
            ["model"],
            buckets=_TOKEN_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "finetune_serve_queue_depth",
            "Number of requests that wait for a slot in the batch",
            registry=self.registry,
        )
        self.running = Gauge(
            "finetune_serve_running_requests", "Number of requests in the batch", registry=self.registry
        )

    def begin(self, model: str, digest: str, type_: str) -> None:
        """Create the series of a served model, starting at 0."""
        self.model_info.labels(model, digest, type_).set(1)
        self.begin_requests(model)
        self.time_to_first_token.labels(model)
        self.inter_token_latency.labels(model)
        for kind in ("prompt", "completion"):
            self.tokens.labels(model, kind)

    def measure(self) -> "Measurement":
        """Measurement of a request that arrives now."""
        return Measurement(self)

    def render(self) -> bytes:
        """Render the metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class Measurement(RequestMeasurement):
    """Measurement of one generation request, with its tokens."""

    def __init__(self, metrics: ServingMetrics) -> None:
        super().__init__(metrics)
        self._metrics = metrics
        self._last_token: dict[int, float] = {}

    def token(self, choice: int = 0) -> None:
        """Count a generated token of the choice with this index."""
        now = time.monotonic()
        last = self._last_token.get(choice)
        if last is not None:
            self._metrics.inter_token_latency.labels(self.model).observe(now - last)
        elif not self._last_token:
            self._metrics.time_to_first_token.labels(self.model).observe(now - self._start)
        self._last_token[choice] = now
        self._metrics.tokens.labels(self.model, "completion").inc()

    def prompt(self, tokens: int) -> None:
        """Count the tokens of an accepted prompt."""
        self._metrics.tokens.labels(self.model, "prompt").inc(tokens)
