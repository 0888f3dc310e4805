# SPDX-License-Identifier: Apache-2.0
"""Gauges about objects, computed from the caches at each scrape."""

import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.metrics.budgetgauges import budget_gauge, used_shares, waiting_gauge
from finetune_operator.metrics.endpointgauges import endpoint_gauges, is_troubled
from finetune_operator.metrics.objectstatus import object_names, object_status, true_reason
from finetune_operator.observe.pod_status import container_state, parse_time
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import UNDER_WAY, ConditionType, Reason

MAX_SERIES_PER_KIND: Final = 2000
"""Objects of a kind that have their own series, by default.

2,000 endpoints are 22,000 series and 2.2 MB per scrape; collecting them takes 60 ms.
"""


class ObjectStateCollector(Collector):
    """Gauges of the active process. Other processes export none, so sums over all processes are right.

    Args:
        kinds: the objects by kind, without settled runs.
        active: whether this process is the active one.
        pods: returns the pods of the run with this namespace and uid.
        since_progress: seconds since the run with this uid last reported a new step, or None.
        settled: number of settled runs by namespace and phase.
        max_series: objects of a kind that have their own series. Of more objects, those come first for which
            an alert fires or will fire first.
        clock: returns the Unix time.
    """

    def __init__(
        self,
        kinds: Mapping[str, Iterable[Manifest]],
        active: Callable[[], bool],
        pods: Callable[[str, str], Iterable[Manifest]],
        since_progress: Callable[[str], float | None],
        *,
        settled: Callable[[], Mapping[tuple[str, str], int]] = dict,
        max_series: int = MAX_SERIES_PER_KIND,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kinds = kinds
        self._settled = settled
        self._active = active
        self._pods = pods
        self._since_progress = since_progress
        self._max_series = max_series
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        active = self._active()
        jobs, evaluations, datasets, endpoints, profiles = (
            list(self._kinds[kind]) if active else []
            for kind in ("FineTuneJob", "Evaluation", "Dataset", "InferenceDeployment", "ComputeProfile")
        )
        yield _phases(jobs, self._settled() if active else {})
        yield _blocked((*jobs, *evaluations), datasets)
        running = [job for job in jobs if _is_running(job)]
        faulty = [dataset for dataset in datasets if object_status(dataset).get("problemCount")]
        yield from self._running(self._first(running, self._silent_since))
        yield _problems(self._first(faulty, lambda each: -object_status(each)["problemCount"]))
        yield from endpoint_gauges(self._first(endpoints, is_later=lambda each: not is_troubled(each)))
        namespaces = {namespace for namespace, _ in self._settled()}
        namespaces |= {each["metadata"]["namespace"] for each in (*jobs, *evaluations, *datasets, *endpoints)}
        shares = used_shares(profiles, namespaces)
        yield budget_gauge(shares[: self._max_series])
        yield waiting_gauge((*jobs, *evaluations), profiles)
        dropped = GaugeMetricFamily(
            "finetune_series_dropped",
            "Objects without series of their own, beyond the limit per kind (metrics.maxSeriesPerKind of the"
            " chart).",
            labels=("kind",),
        )
        if active:
            for kind, number in (
                ("FineTuneJob", len(running)),
                ("Dataset", len(faulty)),
                ("InferenceDeployment", len(endpoints)),
                ("ComputeProfile", len(shares)),
            ):
                dropped.add_metric((kind,), max(0, number - self._max_series))
        yield dropped

    def _first(
        self,
        objects: list[Manifest],
        key: Callable[[Manifest], float] = lambda _: 0,
        is_later: Callable[[Manifest], bool] = lambda _: False,
    ) -> list[Manifest]:
        """The objects that have series of their own: all, or of each namespace in turn the next by its key.

        Otherwise one namespace could take all series.

        Args:
            objects: all objects of a kind.
            key: those with the smallest key of a namespace come first.
            is_later: whether an object comes after all others for which this is False.
        """
        if len(objects) <= self._max_series:
            return objects
        turns: Tally[tuple[bool, str]] = Tally()
        places: list[tuple[bool, int]] = []
        ordered = sorted(objects, key=key)
        for each in ordered:
            later, namespace = is_later(each), each["metadata"]["namespace"]
            places.append((later, turns[later, namespace]))
            turns[later, namespace] += 1
        numbers = sorted(range(len(ordered)), key=places.__getitem__)
        return [ordered[number] for number in numbers[: self._max_series]]

    def _silent_since(self, job: Manifest) -> float:
        at = self._progressed_at(job)
        return math.inf if at is None else at

    def _running(self, jobs: Iterable[Manifest]) -> Iterator[Metric]:
        # Not `job`: Prometheus uses this label for the scraped target.
        names = ("namespace", "finetunejob")
        ratio = GaugeMetricFamily(
            "finetune_job_progress_ratio", "Share of the running stage's steps, 0 to 1.", labels=names
        )
        loss = GaugeMetricFamily("finetune_job_loss", "Training loss in nats per token.", labels=names)
        progressed = GaugeMetricFamily(
            "finetune_job_progress_timestamp_seconds",
            "Unix time at which the running stage's pod started or last reported progress; absent"
            " while no pod runs.",
            labels=names,
        )
        for job in jobs:
            labels, progress = object_names(job), object_status(job)["progress"]
            total = progress.get("totalSteps", 0)
            ratio.add_metric(labels, progress.get("step", 0) / total if total else 0.0)
            if progress.get("loss") is not None:
                loss.add_metric(labels, progress["loss"])
            at = self._progressed_at(job)
            if at is not None:
                progressed.add_metric(labels, at)
        yield from (ratio, loss, progressed)

    def _progressed_at(self, job: Manifest) -> float | None:
        """The latest of the pod's start, the last report, and the status, which outlives this process."""
        namespace, uid = job["metadata"]["namespace"], job["metadata"]["uid"]
        pods = self._pods(namespace, uid)
        running = [container_state(pod).get("running", {}).get("startedAt") for pod in pods]
        moments = [parse_time(started).timestamp() for started in running if started]
        if not moments:
            return None
        seconds = self._since_progress(uid)
        if seconds is not None:
            moments.append(self._clock() - seconds)
        usage = object_status(job).get("usage")
        if usage is not None:
            moments.append(parse_time(usage["until"]).timestamp())
        return max(moments)


def _phases(jobs: Iterable[Manifest], settled: Mapping[tuple[str, str], int]) -> Metric:
    phases = Tally(
        (job["metadata"]["namespace"], object_status(job).get("phase") or "Pending") for job in jobs
    )
    phases.update(settled)
    count = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase.", labels=("namespace", "phase"))
    for labels, number in sorted(phases.items()):
        count.add_metric(labels, number)
    return count


def _blocked(jobs: Iterable[Manifest], datasets: Iterable[Manifest]) -> Metric:
    waiting = {object_names(dataset): _blocking_reason(dataset) for dataset in datasets}
    reasons = Tally(
        ("Dataset", namespace, reason) for (namespace, _), reason in waiting.items() if reason is not None
    )
    for job in jobs:
        reason = _blocking_reason(job)
        ref = job.get("spec", {}).get("dataset", {}).get("ref")
        if (
            true_reason(object_status(job), ConditionType.RECONCILING) == Reason.WAITING_FOR_DATASET
            and ref is not None
        ):
            # It waits for user action if and only if its Dataset does.
            is_blocked = waiting.get((job["metadata"]["namespace"], ref["name"])) is not None
            reason = Reason.WAITING_FOR_DATASET if is_blocked else None
        if reason is not None:
            reasons[job["kind"], job["metadata"]["namespace"], reason] += 1
    count = GaugeMetricFamily(
        "finetune_blocked",
        "FineTuneJobs, Evaluations and Datasets that wait for user action, by the reason of their condition;"
        " not counted during a retry.",
        labels=("kind", "namespace", "reason"),
    )
    for labels, number in sorted(reasons.items()):
        count.add_metric(labels, number)
    return count


def _blocking_reason(obj: Manifest) -> str | None:
    """The reason that requires user action; None while none is required."""
    reason = true_reason(object_status(obj), ConditionType.RECONCILING)
    return None if reason in UNDER_WAY else reason


def _problems(datasets: Iterable[Manifest]) -> Metric:
    problems = GaugeMetricFamily(
        "finetune_dataset_problems",
        "Problems in the rows of the Dataset's source; absent if there are none.",
        labels=("namespace", "dataset"),
    )
    for dataset in datasets:
        problems.add_metric(object_names(dataset), object_status(dataset)["problemCount"])
    return problems


def _is_running(job: Manifest) -> bool:
    status = object_status(job)
    return bool(status.get("progress")) and true_reason(status, ConditionType.RECONCILING) is not None
