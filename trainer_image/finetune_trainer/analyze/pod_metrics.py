# SPDX-License-Identifier: Apache-2.0
"""Reads the metrics of the pods of one revision repeatedly, and adds up what they count.

Each engine has its own names for the metrics in the text that a serving pod serves.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from finetune_trainer.contract.analysis import ServingMetric

Buckets = Mapping[float, float]
"""Number of values up to each upper edge, ascending; the last edge is infinite."""

REQUESTS: Final = "finetune_serve_requests_total"
"""Counter of finished requests, which the pods of each engine have. vLLM's own counter leaves out those that
end at their deadline, and has those of the self-test."""
HISTOGRAMS: Final[Mapping[str, ServingMetric]] = {
    "finetune_serve_time_to_first_token_seconds_bucket": "time_to_first_token_seconds",
    "vllm:time_to_first_token_seconds_bucket": "time_to_first_token_seconds",
    "finetune_serve_inter_token_latency_seconds_bucket": "inter_token_latency_seconds",
    "vllm:inter_token_latency_seconds_bucket": "inter_token_latency_seconds",
}
QUEUES: Final = frozenset({"finetune_serve_queue_depth", "vllm:num_requests_waiting"})
MODELS: Final = "finetune_serve_model_info"
"""Gauge with the digest of each served model, which the pods of each engine have."""
SHED: Final = "429"
"""Status of requests that a pod refused because of load. Clients send them again, so they have not failed."""


@dataclass(frozen=True, slots=True)
class PodMetrics:
    """Counts of one pod since its start, or between two times. The models of the pod are added up."""

    requests: float = 0
    """Finished requests, without those that clients got wrong and those that were refused because of load."""
    errors: float = 0
    histograms: Mapping[str, Buckets] = field(default_factory=dict)
    queue: float | None = None
    """Requests that wait at present."""
    sheds: float = 0
    """Requests that were refused because of load."""

    def since(self, earlier: "PodMetrics") -> "PodMetrics":
        """The counts after an earlier reading. A server that has restarted counts from 0 again."""
        if self._has_restarted_since(earlier):
            return self
        return PodMetrics(
            requests=self.requests - earlier.requests,
            errors=max(self.errors - earlier.errors, 0),
            histograms={
                metric: _combine_buckets(buckets, earlier.histograms.get(metric, {}), -1)
                for metric, buckets in self.histograms.items()
            },
            queue=self.queue,
            sheds=max(self.sheds - earlier.sheds, 0),
        )

    def completed_by(self, earlier: "PodMetrics") -> "PodMetrics":
        """This reading, with the histograms that it lacks from an earlier one of the same process."""
        if self._has_restarted_since(earlier):
            return self
        return replace(self, histograms={**earlier.histograms, **self.histograms})

    def _has_restarted_since(self, earlier: "PodMetrics") -> bool:
        """Whether a count fell. A histogram that one of the readings lacks shows nothing."""
        shared = self.histograms.keys() & earlier.histograms.keys()
        counts = [
            (self.requests, earlier.requests),
            (self.errors, earlier.errors),
            (self.sheds, earlier.sheds),
        ]
        counts += [
            (max(self.histograms[each].values()), max(earlier.histograms[each].values())) for each in shared
        ]
        return any(now < before for now, before in counts)

    def plus(self, other: "PodMetrics") -> "PodMetrics":
        """The counts of both; the queue is that of the other."""
        metrics = {*self.histograms, *other.histograms}
        return PodMetrics(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            histograms={
                metric: _combine_buckets(self.histograms.get(metric, {}), other.histograms.get(metric, {}), 1)
                for metric in metrics
            },
            queue=other.queue,
            sheds=self.sheds + other.sheds,
        )


def read_metrics(text: str) -> PodMetrics:
    """Read the metrics of an engine.

    Raises:
        ValueError: the text is not in the format of Prometheus.
    """
    requests = errors = sheds = 0.0
    histograms: dict[str, dict[float, float]] = {}
    queue: float | None = None
    for sample in (each for family in text_string_to_metric_families(text) for each in family.samples):
        name, labels, value = sample.name, sample.labels, float(sample.value)
        if name == REQUESTS:
            status = labels.get("code", "")
            if status == SHED:
                sheds += value
            elif not status.startswith("4"):
                requests += value
                errors += value * status.startswith("5")
        elif name in HISTOGRAMS:
            buckets = histograms.setdefault(HISTOGRAMS[name], {})
            edge = float(labels["le"])
            buckets[edge] = buckets.get(edge, 0) + value
        elif name in QUEUES:
            queue = (queue or 0) + value
    latencies = {name: _sorted(each) for name, each in histograms.items()}
    return PodMetrics(requests, errors, latencies, queue, sheds)


def served_digests(text: str) -> frozenset[str]:
    """Digests of the models that the pod with these metrics serves; none if it does not state them.

    Raises:
        ValueError: the text is not in the format of Prometheus.
    """
    samples = (each for family in text_string_to_metric_families(text) for each in family.samples)
    digests = (each.labels.get("digest", "") for each in samples if each.name == MODELS)
    return frozenset(filter(None, digests))


def _combine_buckets(one: Buckets, other: Buckets, sign: int) -> Buckets:
    return _sorted({edge: one.get(edge, 0) + sign * other.get(edge, 0) for edge in {*one, *other}})


def _sorted(buckets: Mapping[float, float]) -> Buckets:
    return {edge: max(buckets[edge], 0) for edge in sorted(buckets)} if buckets else {math.inf: 0}


def sum_metrics(parts: Iterable[PodMetrics]) -> PodMetrics:
    """The counts of several pods; the queue is the mean per pod."""
    result, queues = PodMetrics(), []
    for part in parts:
        result = result.plus(part)
        queues += [] if part.queue is None else [part.queue]
    queue = sum(queues) / len(queues) if queues else None
    return replace(result, queue=queue)


TIMEOUT_SECONDS: Final = 5.0
"""Max time for a part of a response, and for the body as a whole."""
MAX_METRICS_BYTES: Final = 4 * 2**20
MAX_PROBLEM_CHARACTERS: Final = 300


def get_metrics(client: httpx.Client, url: str) -> str:
    """The metrics of one pod. Raises httpx.HTTPError, and ValueError if they are not text or too large."""
    with client.stream("GET", url) as response:
        response.raise_for_status()
        body, deadline = bytearray(), time.monotonic() + TIMEOUT_SECONDS
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_METRICS_BYTES:
                raise ValueError(f"its metrics have more than {MAX_METRICS_BYTES} bytes")
            if time.monotonic() > deadline:
                raise ValueError(f"its metrics took more than {TIMEOUT_SECONDS:g} s")
    return body.decode()


class PodReader:
    """The pods of one revision.

    A pod that ends keeps what it has counted. One that could not be read is tried again at the next reading.
    Another pod can get the address of one that has ended. It is recognized by its models, and not counted.
    """

    def __init__(self, urls: Sequence[str], client: httpx.Client, *, from_start: bool = False) -> None:
        """`from_start`: whether requests before the first reading count too."""
        self._urls = urls
        self._client = client
        self._from_start = from_start
        self._last: dict[str, PodMetrics] = {}
        self._digests: dict[str, frozenset[str]] = {}
        self._counted: dict[str, PodMetrics] = {}
        self._queues: list[float] = []
        self._problems: dict[str, str] = {}

    def read(self, executor: Executor) -> None:
        """Read all pods."""
        readings = executor.map(self._read_pod, self._urls)
        waiting: list[float] = []
        for url, reading in zip(self._urls, readings, strict=True):
            if isinstance(reading, str):
                self._problems[url] = reading
                continue
            self._problems.pop(url, None)
            last = self._last.get(url, PodMetrics())
            if url in self._last or self._from_start:
                new = reading.since(last)
                self._counted[url] = self._counted.get(url, PodMetrics()).plus(new)
            self._last[url] = reading.completed_by(last)
            waiting += [] if reading.queue is None else [reading.queue]
        self._queues += [sum(waiting) / len(waiting)] if waiting else []

    @property
    def metrics(self) -> PodMetrics:
        """What all pods have counted, with the mean queue per pod over all readings."""
        counted = sum_metrics(self._counted.values())
        queue = sum(self._queues) / len(self._queues) if self._queues else None
        return replace(counted, queue=queue)

    @property
    def problem(self) -> str:
        """Why pods could not be read the last time; empty if all could."""
        if not self._problems:
            return ""
        url, why = next(iter(self._problems.items()))
        problem = f"{len(self._problems)} of {len(self._urls)} pods could not be read; {url}: {why}"
        return problem[:MAX_PROBLEM_CHARACTERS]

    def _read_pod(self, url: str) -> PodMetrics | str:
        """The counts of one pod, or why they cannot be read."""
        try:
            text = get_metrics(self._client, url)
            digests = served_digests(text)
            if self._digests.setdefault(url, digests) != digests:
                return "it does not show the models that it had before, so it is not counted"
            return read_metrics(text)
        except httpx.HTTPStatusError as error:
            return f"status {error.response.status_code}"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
