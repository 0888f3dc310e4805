# SPDX-License-Identifier: Apache-2.0
"""Gauges of endpoints and their revisions."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from finetune_operator.metrics.objectstatus import (
    condition_status,
    object_names,
    object_status,
    true_reason,
)
from finetune_operator.observe.pod_status import parse_time
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.rollout.transitions import ENDED
from finetune_operator.status.reasons import ConditionType, Reason


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
