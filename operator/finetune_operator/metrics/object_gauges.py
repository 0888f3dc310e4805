# SPDX-License-Identifier: Apache-2.0
"""Gauges about objects, computed from the caches at each scrape.

They cover phases and conditions of objects, endpoints with their revisions, and the budgets of
ComputeProfiles with the objects that wait for them.
"""

import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.api.compute_profile import ComputeProfile, is_marked_default
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.observe.pod_status import container_state, parse_time
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import ENDED
from finetune_operator.reconcile.platform.budgets import read_used_shares
from finetune_operator.status.explanations import UNDER_WAY
from finetune_operator.status.reasons import ConditionType, Reason


def object_names(obj: Manifest) -> tuple[str, str]:
    """Namespace and name."""
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def object_status(obj: Manifest) -> dict[str, Any]:
    """The status; empty if there is none."""
    status: dict[str, Any] = obj.get("status") or {}
    return status


def true_reason(status: dict[str, Any], type_: str) -> str | None:
    """The reason of a condition that is True."""
    return next(
        (
            condition["reason"]
            for condition in status.get("conditions", ())
            if condition["type"] == type_ and condition["status"] == "True"
        ),
        None,
    )


def condition_status(status: dict[str, Any], type_: str) -> str | None:
    """The status of a condition; None if the object does not have it."""
    return next((each["status"] for each in status.get("conditions", ()) if each["type"] == type_), None)


class UsedShare(NamedTuple):
    """Share of a budget that one namespace has used."""

    share: float
    namespace: str
    profile: str


def used_shares(profiles: Iterable[Manifest], namespaces: Collection[str]) -> list[UsedShare]:
    """All of these ComputeProfiles and namespaces, the largest first."""
    found = (
        UsedShare(share, namespace, profile["metadata"]["name"])
        for profile in profiles
        for namespace, share in read_used_shares(profile).items()
        if namespace in namespaces
    )
    return sorted(found, reverse=True)


def budget_gauge(shares: Iterable[UsedShare]) -> Metric:
    """One series per namespace and ComputeProfile."""
    gauge = GaugeMetricFamily(
        "finetune_budget_used_ratio",
        "Share of a ComputeProfile's budget that the namespace has used in the current period; 1 or more: it"
        " is exhausted. Absent for namespaces that have used nothing, and for those without FineTuneJobs,"
        " unfinished Evaluations, Datasets and InferenceDeployments.",
        labels=("namespace", "profile"),
    )
    for each in shares:
        gauge.add_metric((each.namespace, each.profile), each.share)
    return gauge


def waiting_gauge(objects: Iterable[Manifest], profiles: Iterable[Manifest]) -> Metric:
    """One series per kind, namespace and ComputeProfile of these FineTuneJobs and Evaluations."""
    gauge = GaugeMetricFamily(
        "finetune_budget_waiting",
        "FineTuneJobs and Evaluations that wait for a budget of their namespace, by the ComputeProfile of"
        " their next stage. Absent if there are none.",
        labels=("kind", "namespace", "profile"),
    )
    default = next((each["metadata"]["name"] for each in profiles if _is_default(each["metadata"])), "")
    waiting = Tally(
        (each["kind"], each["metadata"]["namespace"], _next_profile(each) or default)
        for each in objects
        if true_reason(object_status(each), ConditionType.RECONCILING) == Reason.BUDGET_EXHAUSTED
    )
    for labels, number in sorted(waiting.items()):
        gauge.add_metric(labels, number)
    return gauge


def _next_profile(obj: Manifest) -> str | None:
    """The ComputeProfile of the next stage with devices; None for the default of a new object."""
    spec, status = obj.get("spec") or {}, object_status(obj)
    of_evaluation = (spec.get("evaluation") or {}).get("profile") if status.get("checkpoints") else None
    resolved = (status.get("resolved") or {}).get("profile")
    profile: str | None = of_evaluation or resolved or (spec.get("compute") or {}).get("profile")
    return profile


def _is_default(metadata: Mapping[str, Any]) -> bool:
    return is_marked_default(metadata.get("annotations") or {}, metadata.get("labels") or {})


def endpoint_gauges(endpoints: Iterable[Manifest]) -> Iterator[Metric]:
    """Gauges of these InferenceDeployments and of their revisions with requests or a rollout."""
    names = ("namespace", "inferencedeployment")
    models = GaugeMetricFamily(
        "finetune_endpoint_models", "Models in the spec of the InferenceDeployment.", labels=names
    )
    served = GaugeMetricFamily("finetune_endpoint_models_served", "Models that it serves.", labels=names)
    replicas = GaugeMetricFamily("finetune_endpoint_replicas", "Replicas in its spec.", labels=names)
    ready = GaugeMetricFamily(
        "finetune_endpoint_replicas_ready", "Replicas of the live revision that are ready.", labels=names
    )
    waiting = GaugeMetricFamily(
        "finetune_endpoint_waiting_for_checkpoint",
        "1 while a model that it follows has no checkpoint that it may serve.",
        labels=names,
    )
    outdated = GaugeMetricFamily(
        "finetune_endpoint_image_outdated",
        "1 while it serves with an image older than the security floor of the operator's chart.",
        labels=names,
    )
    without_capacity = GaugeMetricFamily(
        "finetune_endpoint_waiting_for_capacity",
        "1 while its rollout waits for devices, or for a step of a canary to get them.",
        labels=names,
    )
    routed = GaugeMetricFamily(
        "finetune_endpoint_route_accepted",
        "1 while all gateways have accepted its HTTPRoute, else 0; absent without a route.",
        labels=names,
    )
    weight = GaugeMetricFamily(
        "finetune_endpoint_revision_weight_ratio",
        "Share of the requests that are routed to a revision, 0 to 1.",
        labels=(*names, "revision"),
    )
    since = GaugeMetricFamily(
        "finetune_endpoint_revision_state_timestamp_seconds",
        "Unix time at which the state of a revision began, as in status.revisions; absent for revisions that"
        " are retired, failed or rolled back.",
        labels=(*names, "revision", "state"),
    )
    cost = GaugeMetricFamily(
        "finetune_endpoint_hourly_cost",
        "Cost per hour of the devices that its pods hold, ready or not, in the currency's unit, as in"
        " status.cost; absent without a price.",
        labels=(*names, "currency"),
    )
    for endpoint in endpoints:
        labels, spec, status = object_names(endpoint), endpoint["spec"], object_status(endpoint)
        models.add_metric(labels, len(spec["models"]))
        served.add_metric(labels, _models_served(status))
        replicas.add_metric(labels, spec.get("replicas", 1))
        ready.add_metric(labels, status.get("readyReplicas", 0))
        reason = true_reason(status, ConditionType.RECONCILING)
        waiting.add_metric(labels, float(reason == Reason.WAITING_FOR_CHECKPOINT))
        without_capacity.add_metric(labels, float(reason == Reason.NO_CAPACITY_FOR_SURGE))
        accepted = condition_status(status, ConditionType.ROUTE_ACCEPTED)
        if accepted is not None:
            routed.add_metric(labels, float(accepted == "True"))
        for revision in _present(status):
            weight.add_metric((*labels, revision["name"]), (revision.get("weight") or 0) / 100)
            if revision.get("since"):
                began = parse_time(revision["since"]).timestamp()
                since.add_metric((*labels, revision["name"], revision["state"]), began)
        held = status.get("cost") or {}
        if "amountPerHour" in held:
            cost.add_metric((*labels, held.get("currency", "")), held["amountPerHour"])
        outdated.add_metric(labels, float(condition_status(status, ConditionType.IMAGE_CURRENT) == "False"))
    yield from (
        models,
        served,
        replicas,
        ready,
        waiting,
        without_capacity,
        outdated,
        routed,
        weight,
        since,
        cost,
    )


def is_troubled(endpoint: Manifest) -> bool:
    """Whether one of the gauges above has a value for which an alert fires, or the analysis is needed."""
    spec, status = endpoint["spec"], object_status(endpoint)
    reason = true_reason(status, ConditionType.RECONCILING)
    return (
        _models_served(status) < len(spec["models"])
        or (status.get("readyReplicas", 0) == 0 and spec.get("replicas", 1) > 0)
        or reason == Reason.NO_CAPACITY_FOR_SURGE
        or condition_status(status, ConditionType.ROUTE_ACCEPTED) in {"False", "Unknown"}
        or condition_status(status, ConditionType.IMAGE_CURRENT) == "False"
    )


def _models_served(status: dict[str, Any]) -> int:
    return sum(1 for model in status.get("models", ()) if model.get("digest"))


def _present(status: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Revisions that get requests, or have not ended."""
    for revision in status.get("revisions", ()):
        if revision.get("weight") or revision["state"] not in ENDED:
            yield revision


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
            list(self._kinds[model.__name__]) if active else []
            for model in (FineTuneJob, Evaluation, Dataset, InferenceDeployment, ComputeProfile)
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
            for model, number in (
                (FineTuneJob, len(running)),
                (Dataset, len(faulty)),
                (InferenceDeployment, len(endpoints)),
                (ComputeProfile, len(shares)),
            ):
                dropped.add_metric((model.__name__,), max(0, number - self._max_series))
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
        (Dataset.__name__, namespace, reason)
        for (namespace, _), reason in waiting.items()
        if reason is not None
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
