"""Prometheus metrics. Labels are bounded: no counter carries a name of an object.

Counters of what runs did increase by the difference between two statuses, after the second was written: a
restarted process never counts again what was counted before.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.plan import Manifest

STAGE_BUCKETS: Final = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 14_400, 43_200, 86_400, 259_200)
RECONCILE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

SERIES_LIMIT: Final = 500
"""Running jobs with series of their own."""


class Metrics:
    """All metrics of the process, in a registry of its own."""

    def __init__(self) -> None:
        # A series a series for when it began, which nobody asks for.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.stage_seconds = Histogram(
            "finetune_stage_seconds",
            "Duration of finished stages of FineTuneJobs; a Dataset's own prepare is not among them.",
            ("stage", "outcome"),
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.device_seconds = Counter(
            "finetune_device_seconds",
            "Devices requested times the time that pods held them.",
            ("namespace", "profile"),
            registry=self.registry,
        )
        self.promotions = Counter(
            "finetune_promotions", "Checkpoints by the decision on them.", ("result",), registry=self.registry
        )
        self.rollouts = Counter(
            "finetune_rollouts",
            "Revisions of endpoints by how they ended.",
            ("result",),
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "finetune_reconcile_seconds",
            "Duration of passes over objects, requests included.",
            ("kind", "result"),
            buckets=RECONCILE_BUCKETS,
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "finetune_reconcile_errors",
            "Passes that did not succeed.",
            ("kind", "result"),
            registry=self.registry,
        )
        self.api_requests = Counter(
            "finetune_api_requests",
            "Requests to the API server; code is error where no answer came.",
            ("verb", "code"),
            registry=self.registry,
        )

    def requested(self, verb: str, code: str) -> None:
        """Count one request to the API server."""
        self.api_requests.labels(verb, code).inc()

    def reconciled(self, kind: str, seconds: float, result: str) -> None:
        """Count one pass; `gone` and `conflict` are no errors."""
        self.reconcile_seconds.labels(kind, result).observe(seconds)
        if result in {"unavailable", "rejected", "error"}:
            self.reconcile_errors.labels(kind, result).inc()


class StateCollector(Collector):
    """What is computed from the caches when it is asked for.

    Args:
        jobs: all FineTuneJobs.
        depth: keys that wait for a worker.
        ages: seconds since each watch proved to be alive.
        active: whether this process is the active one; the others say nothing about jobs, so that a sum
            over all processes is right.
    """

    def __init__(
        self,
        jobs: Iterable[Manifest],
        depth: Callable[[], int],
        ages: Callable[[], Mapping[str, float]],
        active: Callable[[], bool],
    ) -> None:
        self._jobs = jobs
        self._depth = depth
        self._ages = ages
        self._active = active

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "finetune_queue_depth", "Objects that wait for a worker.", value=self._depth()
        )
        age = GaugeMetricFamily(
            "finetune_watch_age_seconds", "Time since the watch proved to be alive.", labels=("resource",)
        )
        for resource, seconds in self._ages().items():
            age.add_metric((resource,), seconds)
        yield age
        yield GaugeMetricFamily(
            "finetune_active", "1 for the process that holds the lease.", value=float(self._active())
        )
        if self._active():
            yield from self._job_metrics()

    def _job_metrics(self) -> Iterator[Metric]:
        jobs = list(self._jobs)
        phases = Tally((job["metadata"]["namespace"], _status(job).get("phase") or "Pending") for job in jobs)
        count = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase.", labels=("namespace", "phase"))
        for labels, number in sorted(phases.items()):
            count.add_metric(labels, number)
        yield count

        running = [job for job in jobs if _is_running(job)]
        names = ("namespace", "job")
        ratio = GaugeMetricFamily("finetune_job_progress_ratio", "Share of the stage's steps.", labels=names)
        loss = GaugeMetricFamily("finetune_job_loss", "Training loss in nats a token.", labels=names)
        for job in islice(running, SERIES_LIMIT):
            metadata, progress = job["metadata"], _status(job)["progress"]
            labels = (metadata["namespace"], metadata["name"])
            total = progress.get("totalSteps", 0)
            ratio.add_metric(labels, progress.get("step", 0) / total if total else 0.0)
            if progress.get("loss") is not None:
                loss.add_metric(labels, progress["loss"])
        yield ratio
        yield loss
        yield GaugeMetricFamily(
            "finetune_job_series_dropped",
            f"Running jobs beyond the {SERIES_LIMIT} that have series of their own.",
            value=max(0, len(running) - SERIES_LIMIT),
        )


def _status(job: Manifest) -> dict[str, Any]:
    status: dict[str, Any] = job.get("status") or {}
    return status


def _is_running(job: Manifest) -> bool:
    status = _status(job)
    return bool(status.get("progress")) and any(
        condition["type"] == "Reconciling" and condition["status"] == "True"
        for condition in status.get("conditions", ())
    )
