"""Prometheus metrics of the server per served model. Requests for other models share the label `unknown`."""

import time
from http import HTTPStatus
from typing import Final

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

UNKNOWN_MODEL: Final = "unknown"
CLIENT_CLOSED_REQUEST: Final = 499
"""Status code of a request whose client disconnected before the response was complete."""

_MEASURED_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_RECORD: Final = "measurement"
_BUCKETS_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def model_info(registry: CollectorRegistry) -> Gauge:
    """The metric of the served models, which the pods of each engine have."""
    return Gauge(
        "finetune_serve_model_info",
        "Always 1; digest and type of the model served under this name. Name base: the base model",
        ["model", "digest", "type"],
        registry=registry,
    )


class ServingMetrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        # Otherwise each series gets a second one with its creation time, which nothing reads.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "finetune_serve_requests",
            "Number of finished generation requests; code 499: the client disconnected",
            ["model", "code"],
            registry=self.registry,
        )
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
            buckets=_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "finetune_serve_request_duration_seconds",
            "Time from the request to the end of its response, for complete responses",
            ["model"],
            buckets=_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "finetune_serve_queue_depth",
            "Number of requests that wait for a slot in the batch",
            registry=self.registry,
        )
        self.model_info = model_info(self.registry)
        self.running = Gauge(
            "finetune_serve_running_requests", "Number of requests in the batch", registry=self.registry
        )

    def begin(self, model: str, digest: str, type_: str) -> None:
        """Create the series of a served model, starting at 0."""
        self.model_info.labels(model, digest, type_).set(1)
        self.requests.labels(model, str(int(HTTPStatus.OK)))
        self.time_to_first_token.labels(model)
        self.duration.labels(model)
        for kind in ("prompt", "completion"):
            self.tokens.labels(model, kind)

    def render(self) -> bytes:
        """Render the metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class Measurement:
    """Measurement of one generation request. The routes fill it in."""

    def __init__(self, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._start = time.monotonic()
        self._first_token_seen = False
        self.model = UNKNOWN_MODEL
        self.code: int = CLIENT_CLOSED_REQUEST
        self.failure: HTTPStatus | None = None
        """Status of a stream that failed after its status was sent."""

    @classmethod
    def of(cls, scope: Scope) -> "Measurement":
        """Return the measurement of the request with this scope."""
        measurement = scope[_RECORD]
        assert isinstance(measurement, cls)  # noqa: S101 - set by MeasureRequests
        return measurement

    def remaining(self, seconds: float) -> float:
        """What remains of this many seconds from the arrival of the request."""
        return self._start + seconds - time.monotonic()

    def token(self) -> None:
        """Count a generated token."""
        if not self._first_token_seen:
            self._first_token_seen = True
            self._metrics.time_to_first_token.labels(self.model).observe(time.monotonic() - self._start)
        self._metrics.tokens.labels(self.model, "completion").inc()

    def prompt(self, tokens: int) -> None:
        """Count the tokens of an accepted prompt."""
        self._metrics.tokens.labels(self.model, "prompt").inc(tokens)

    def end(self) -> None:
        """Count the finished request."""
        code = self.failure or self.code
        self._metrics.requests.labels(self.model, str(int(code))).inc()
        if code == HTTPStatus.OK:
            self._metrics.duration.labels(self.model).observe(time.monotonic() - self._start)


class MeasureRequests:
    """ASGI middleware that counts generation requests, however they end."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] not in _MEASURED_PATHS:
            await self._app(scope, receive, send)
            return
        measurement = scope[_RECORD] = Measurement(self._metrics)
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
