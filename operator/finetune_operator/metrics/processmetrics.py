# SPDX-License-Identifier: Apache-2.0
"""Metrics about the process itself."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


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
