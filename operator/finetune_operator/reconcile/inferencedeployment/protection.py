"""What protects an endpoint's pods: a NetworkPolicy from strangers, a PodDisruptionBudget from evictions."""

from dataclasses import dataclass

from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.protection import build_disruption_budget, build_endpoint_policy
from finetune_operator.plan import Apply, Delete
from finetune_operator.reconcile.world import World


@dataclass(frozen=True, slots=True)
class Protection:
    """What is to be applied and deleted for it."""

    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()


def protect(endpoint: InferenceDeployment, world: World, revision: str) -> Protection:
    """Bring both to what the spec asks for; `revision` serves after this pass, empty: none."""
    apply: list[Apply] = []
    delete: list[Delete] = []
    if endpoint.spec.network_policy is not None:
        apply.append(Apply(build_endpoint_policy(endpoint, world.facts.monitoring_namespace)))
    else:
        delete += [Delete(policy, "Background") for policy in world.network_policies.values()]
    if not _is_managed(endpoint):
        delete += [Delete(budget, "Background") for budget in world.disruption_budgets.values()]
    elif revision and _has_budget(endpoint, world):
        apply.append(Apply(build_disruption_budget(endpoint, revision)))
    return Protection(tuple(apply), tuple(delete))


def _is_managed(endpoint: InferenceDeployment) -> bool:
    availability = endpoint.spec.availability
    return availability is None or availability.disruption_budget != "None"


def _has_budget(endpoint: InferenceDeployment, world: World) -> bool:
    """For one replica a budget of 1 says nothing; one that exists follows the revision that serves."""
    availability = endpoint.spec.availability
    wanted = availability is not None and availability.max_unavailable is not None
    return wanted or endpoint.spec.replicas > 1 or bool(world.disruption_budgets)
