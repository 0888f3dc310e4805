# SPDX-License-Identifier: Apache-2.0
"""Protection of an endpoint's pods: a NetworkPolicy, and a PodDisruptionBudget against evictions."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.resources import NETWORK_POLICY, POD_DISRUPTION_BUDGET
from finetune_operator.manifests.pod_protection import (
    build_disruption_budget,
    build_endpoint_policy,
    build_shared_budget,
)
from finetune_operator.plan import Apply, Delete
from finetune_operator.reconcile.inputs.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Protection:
    """Writes that protect an endpoint."""

    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()


def protect(
    endpoint: InferenceDeployment, snapshot: Snapshot, revision: str, weights: Mapping[str, int]
) -> Protection:
    """Apply or delete both as the spec requests.

    Args:
        endpoint, snapshot: the endpoint, and the snapshot of the pass.
        revision: the revision that serves after this pass, empty if none does.
        weights: percent of the requests by revision after this pass.
    """
    apply: list[Apply] = []
    delete: list[Delete] = []
    if endpoint.spec.network_policy is not None:
        apply.append(Apply(build_endpoint_policy(endpoint, snapshot.facts.monitoring_namespace)))
    else:
        delete += [Delete(policy, "Background") for policy in snapshot.children[NETWORK_POLICY].values()]
    if not _is_managed(endpoint):
        delete += [
            Delete(budget, "Background") for budget in snapshot.children[POD_DISRUPTION_BUDGET].values()
        ]
    elif len(weights) > 1 and _has_budget(endpoint, snapshot):
        apply.append(Apply(build_shared_budget(endpoint, weights)))
    elif revision and _has_budget(endpoint, snapshot):
        apply.append(Apply(build_disruption_budget(endpoint, revision)))
    return Protection(tuple(apply), tuple(delete))


def _is_managed(endpoint: InferenceDeployment) -> bool:
    availability = endpoint.spec.availability
    return availability is None or availability.disruption_budget != "None"


def _has_budget(endpoint: InferenceDeployment, snapshot: Snapshot) -> bool:
    """Whether a budget is needed: one replica needs none, and an existing budget follows the revision."""
    availability = endpoint.spec.availability
    wanted = availability is not None and availability.max_unavailable is not None
    return wanted or endpoint.spec.replicas > 1 or bool(snapshot.children[POD_DISRUPTION_BUDGET])
