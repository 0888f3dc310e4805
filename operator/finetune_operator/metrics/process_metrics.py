# SPDX-License-Identifier: Apache-2.0
"""Metrics that the process keeps (counters, histograms), their retention, and gauges of the process."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import finetune_operator
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import RevisionResult
from finetune_operator.api.rollout_strategy import StrategyType
from finetune_operator.api.stage_status import LOST_CAUSES
from finetune_operator.plan import Key
from finetune_trainer.contract.analysis import AnalysisVerdict
from finetune_trainer.contract.base import CONTRACT_VERSION
from finetune_trainer.contract.vocabulary import Stage

STAGE_BUCKETS_SECONDS: Final = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 14_400, 43_200, 86_400, 259_200)
PASS_BUCKETS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

ERROR_RESULTS: Final = frozenset({"unavailable", "rejected", "error"})
"""Results of passes that count as errors; `engine.worker` has all results."""


class StageOutcome(StrEnum):
    """Outcome of a stage."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PodEnd(StrEnum):
    """Cause of the end of a stage's pod."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    PREEMPTED = "preempted"


class PromotionResult(StrEnum):
    """The decision on a Checkpoint."""

    PROMOTED = "promoted"
    REJECTED = "rejected"
    GATE_FAILED = "gate_failed"
    UNDECIDED = "undecided"


class RolloutResult(StrEnum):
    """Result of the rollout of a revision; rolled back: an earlier revision continues to serve."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


class OperatorMetrics:
    """All metrics of the process, in its own registry.

    Attributes:
        namespaces: namespaces that have series.
        profiles: ComputeProfiles that have series.
    """

    def __init__(self) -> None:
        # Drop the `_created` series: one extra per time series, unused.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.namespaces: set[str] = set()
        self.profiles: set[str] = set()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.stage_seconds = Histogram(
            "finetune_stage_seconds",
            "Duration of finished stages of FineTuneJobs, without the prepare of a Dataset; outcome:"
            " succeeded, failed.",
            ("stage", "outcome"),
            buckets=STAGE_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.stage_queued_seconds = Histogram(
            "finetune_stage_queued_seconds",
            "Time from the creation of a Job to the start of its first container, of finished stages.",
            ("stage", "profile"),
            buckets=STAGE_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.pods_ended = Counter(
            "finetune_pods_ended",
            "Pods of stages whose end the operator observed, by cause: succeeded, failed, out_of_memory,"
            " preempted (evicted, drained, deleted, stopped with its state saved, or left by another pod of"
            " its run).",
            ("stage", "cause"),
            registry=self.registry,
        )
        self.device_seconds = Counter(
            "finetune_device_seconds",
            "Devices requested times the running time of containers.",
            ("namespace", "profile"),
            registry=self.registry,
        )
        self.allocated_device_seconds = Counter(
            "finetune_allocated_device_seconds",
            "Devices requested times the time from the scheduling of pods to their end:"
            " finetune_device_seconds_total, and the time before containers start.",
            ("namespace", "profile"),
            registry=self.registry,
        )
        self.queued_device_seconds = Counter(
            "finetune_queued_device_seconds",
            "Devices requested times the time that pods waited for a node; counted from the start of the"
            " first container.",
            ("namespace", "profile"),
            registry=self.registry,
        )
        self.lost_device_seconds = Counter(
            "finetune_lost_device_seconds",
            "Allocated device time that led to no result, by cause, as in status.cost.lost; repeated training"
            " is counted when training completes.",
            ("namespace", "profile", "cause"),
            registry=self.registry,
        )
        self.cost = Counter(
            "finetune_cost",
            "Device time at the price of its ComputeProfile, in the currency's unit.",
            ("namespace", "currency"),
            registry=self.registry,
        )
        self.checkpoints_recorded = Counter(
            "finetune_checkpoints_recorded",
            "Checkpoints recorded for runs.",
            ("namespace",),
            registry=self.registry,
        )
        self.promotions = Counter(
            "finetune_promotions",
            "Checkpoints by the decision on them: promoted, rejected, gate_failed, undecided.",
            ("namespace", "result"),
            registry=self.registry,
        )
        self.rollouts = Counter(
            "finetune_rollouts",
            "Finished rollouts of revisions: succeeded, rolled_back (failed or aborted, and the previous"
            " revision serves), failed (without a previous revision).",
            ("namespace", "result"),
            registry=self.registry,
        )
        self.rollout_verdicts = Counter(
            "finetune_rollout_verdicts",
            "Finished rollouts by the verdict on the revision, as in status.revisions of its endpoint.",
            ("namespace", "strategy", "verdict"),
            registry=self.registry,
        )
        self.rollout_analyses = Counter(
            "finetune_rollout_analyses",
            "Analyses of new revisions by verdict: Pass, Fail, Inconclusive.",
            ("namespace", "verdict"),
            registry=self.registry,
        )
        self.rollout_duration = Histogram(
            "finetune_rollout_duration_seconds",
            "Time from the start of a rollout to its verdict, including waits for capacity, the steps of a"
            " canary and the bake; result as in finetune_rollouts_total.",
            ("strategy", "result"),
            buckets=STAGE_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "finetune_reconcile_seconds",
            "Duration of reconcile passes, including requests; result: ok, gone, conflict, unavailable,"
            " rejected, error.",
            ("kind", "result"),
            buckets=PASS_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "finetune_reconcile_errors",
            "Failed reconcile passes.",
            ("kind", "result"),
            registry=self.registry,
        )
        self.api_requests = Counter(
            "finetune_api_requests",
            "Requests to the API server; code is error if there was no response.",
            ("verb", "code"),
            registry=self.registry,
        )
        self.report_requests = Counter(
            "finetune_report_requests",
            "Requests to the report endpoint by HTTP status.",
            ("code",),
            registry=self.registry,
        )
        self.etcd_restores = Counter(
            "finetune_etcd_restores",
            "Restores of etcd from a snapshot that this process detected. It then listed everything again.",
            registry=self.registry,
        )
        self.build_info = Gauge(
            "finetune_build_info",
            "1; the operator's version, and that of its contract with the trainer image.",
            ("version", "contract"),
            registry=self.registry,
        )
        self.build_info.labels(finetune_operator.__version__, str(CONTRACT_VERSION)).set(1)
        for stage, outcome in product(get_args(Stage), StageOutcome):
            self.stage_seconds.labels(stage, outcome)
        for stage, cause in product(get_args(Stage), PodEnd):
            self.pods_ended.labels(stage, cause)
        for strategy, result in product(get_args(StrategyType), RolloutResult):
            self.rollout_duration.labels(strategy, result)

    def begin_namespace(self, namespace: str) -> None:
        """Start the counters of a namespace at 0."""
        self.namespaces.add(namespace)
        self.checkpoints_recorded.labels(namespace)
        for promotion in PromotionResult:
            self.promotions.labels(namespace, promotion)
        for rollout in RolloutResult:
            self.rollouts.labels(namespace, rollout)
        for strategy, verdict in product(get_args(StrategyType), get_args(RevisionResult)):
            self.rollout_verdicts.labels(namespace, strategy, verdict)
        for analysis in get_args(AnalysisVerdict):
            self.rollout_analyses.labels(namespace, analysis)

    def begin_profile(self, namespace: str, profile: str) -> None:
        """Start the counters of a ComputeProfile at 0."""
        self.profiles.add(profile)
        self.device_seconds.labels(namespace, profile)
        self.allocated_device_seconds.labels(namespace, profile)
        self.queued_device_seconds.labels(namespace, profile)
        for cause in LOST_CAUSES:
            self.lost_device_seconds.labels(namespace, profile, cause)
        for stage in get_args(Stage):
            self.stage_queued_seconds.labels(stage, profile)

    def forget_namespace(self, namespace: str) -> None:
        """Drop the series of a namespace. If the namespace returns, they start again at 0."""
        self.namespaces.discard(namespace)
        for metric in (
            self.device_seconds,
            self.allocated_device_seconds,
            self.queued_device_seconds,
            self.lost_device_seconds,
            self.cost,
            self.checkpoints_recorded,
            self.promotions,
            self.rollouts,
            self.rollout_verdicts,
            self.rollout_analyses,
        ):
            metric.remove_by_labels({"namespace": namespace})

    def forget_profile(self, profile: str) -> None:
        """Drop the series of a ComputeProfile. If the profile returns, they start again at 0."""
        self.profiles.discard(profile)
        for metric in (
            self.device_seconds,
            self.allocated_device_seconds,
            self.queued_device_seconds,
            self.lost_device_seconds,
            self.stage_queued_seconds,
        ):
            metric.remove_by_labels({"profile": profile})

    def requested(self, verb: str, code: str) -> None:
        """Count one request to the API server."""
        self.api_requests.labels(verb, code).inc()

    def reported(self, code: int) -> None:
        """Count one response of the report endpoint."""
        self.report_requests.labels(str(code)).inc()

    def reconciled(self, kind: str, seconds: float, result: str) -> None:
        """Count one pass; `gone` and `conflict` are not errors."""
        self.reconcile_seconds.labels(kind, result).observe(seconds)
        if result in ERROR_RESULTS:
            self.reconcile_errors.labels(kind, result).inc()


class SeriesRetention:
    """Drops series after their namespace or ComputeProfile has been gone for a whole period.

    Dropping them at once would lose values that were counted after the last scrape.

    Args:
        metrics: the metrics whose series to drop.
        keys: returns the keys of all objects of our kinds.
        period: seconds between two sweeps; longer than many scrapes.
    """

    def __init__(self, metrics: OperatorMetrics, keys: Callable[[], Iterable[Key]], period: float) -> None:
        self._metrics = metrics
        self._keys = keys
        self._period = period
        self._gone_namespaces: frozenset[str] = frozenset()
        self._gone_profiles: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Sweep once per period, without end."""
        while True:
            await asyncio.sleep(self._period)
            self.sweep()

    def sweep(self) -> None:
        """Drop the series of what was gone at the last sweep and is still gone."""
        namespaces, profiles = set(), set()
        for key in self._keys():
            if key.kind == ComputeProfile.__name__:
                profiles.add(key.name)
            else:
                namespaces.add(key.namespace)
        gone = frozenset(self._metrics.namespaces - namespaces)
        for namespace in gone & self._gone_namespaces:
            self._metrics.forget_namespace(namespace)
        self._gone_namespaces = gone
        gone = frozenset(self._metrics.profiles - profiles)
        for profile in gone & self._gone_profiles:
            self._metrics.forget_profile(profile)
        self._gone_profiles = gone


@dataclass(frozen=True)
class ProcessStateCollector(Collector):
    """Gauges from the parts of the process, read at each scrape."""

    depth: Callable[[], int]
    """Number of keys that wait for a worker."""
    ages: Callable[[], Mapping[str, float]]
    """Seconds since the last activity of each watch."""
    active: Callable[[], bool]
    """Whether this process is the active one."""
    lease_transitions: Callable[[], int]
    """Number of transitions of the Lease."""
    report_up: Callable[[], bool | None]
    """Whether pods can reach the report endpoint; None if it is disabled."""
    outdated: Callable[[], int] = lambda: 0
    """Number of our kinds whose CustomResourceDefinition is outdated."""
    large_namespaces: Callable[[], int] = lambda: 0
    """Number of namespaces whose objects exceed the bound of the caches."""
    other_installation: Callable[[], str] = lambda: ""
    """The Lease of another installation that reconciles the same namespaces; empty if there is none."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("finetune_queue_depth", "Objects that wait for a worker.", value=self.depth())
        age = GaugeMetricFamily(
            "finetune_watch_age_seconds", "Time since the last activity of the watch.", labels=("resource",)
        )
        for resource, seconds in self.ages().items():
            age.add_metric((resource,), seconds)
        yield age
        yield GaugeMetricFamily(
            "finetune_outdated_definitions",
            "Kinds whose CustomResourceDefinition is older than this operator, which waits for an update.",
            value=self.outdated(),
        )
        yield GaugeMetricFamily(
            "finetune_large_namespaces",
            "Namespaces whose objects need more memory than the operator grants to one namespace. It changes"
            " nothing there, and its log names them.",
            value=self.large_namespaces(),
        )
        yield GaugeMetricFamily(
            "finetune_other_installation",
            "1 while another installation reconciles the same namespaces and this one waits for it.",
            value=float(bool(self.other_installation())),
        )
        active = self.active()
        yield GaugeMetricFamily(
            "finetune_active", "1 for the process that holds the Lease.", value=float(active)
        )
        transitions = CounterMetricFamily(
            "finetune_lease_transitions",
            "Transitions of the Lease, from the active process.",
            labels=(),
        )
        up = GaugeMetricFamily(
            "finetune_report_up",
            "1 while the report endpoint is published, from the active process; absent if it is disabled.",
            labels=(),
        )
        if active:
            transitions.add_metric((), self.lease_transitions())
            reachable = self.report_up()
            if reachable is not None:
                up.add_metric((), float(reachable))
        yield transitions
        yield up
