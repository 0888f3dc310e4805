# SPDX-License-Identifier: Apache-2.0
"""Gauges of the budgets of ComputeProfiles, and of what waits for them."""

from collections import Counter as Tally
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from finetune_operator.api.compute_profile import is_marked_default
from finetune_operator.metrics.objectstatus import object_status, true_reason
from finetune_operator.plan import Manifest
from finetune_operator.status.budgetuse import shares_used
from finetune_operator.status.reasons import ConditionType, Reason


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
        for namespace, share in shares_used(profile).items()
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
