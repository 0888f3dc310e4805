# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the built-in engine per served model."""

import time
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

from finetune_trainer.serve.requestmetrics import BUCKETS_SECONDS, RequestMeasurement, RequestMetrics

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
