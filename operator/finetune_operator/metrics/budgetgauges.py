# SPDX-License-Identifier: Apache-2.0
"""Gauge of the budgets of ComputeProfiles."""

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from finetune_operator.plan import Manifest
from finetune_operator.status.budgetuse import shares_used


class UsedShare(NamedTuple):
    """Share of a budget that one namespace has used."""

    share: float
    namespace: str
    profile: str


def used_shares(profiles: Iterable[Manifest]) -> list[UsedShare]:
    """All of these ComputeProfiles, the largest first."""
    found = (
        UsedShare(share, namespace, profile["metadata"]["name"])
        for profile in profiles
        for namespace, share in shares_used(profile).items()
    )
    return sorted(found, reverse=True)


def budget_gauge(shares: Iterable[UsedShare]) -> Metric:
    """One series per namespace and ComputeProfile."""
    gauge = GaugeMetricFamily(
        "finetune_budget_used_ratio",
        "Share of a ComputeProfile's budget that the namespace has used in the current period; 1 or more: it"
        " is exhausted. Absent for namespaces that have used nothing. Each installation of the operator"
        " exports all namespaces.",
        labels=("namespace", "profile"),
    )
    for each in shares:
        gauge.add_metric((each.namespace, each.profile), each.share)
    return gauge
