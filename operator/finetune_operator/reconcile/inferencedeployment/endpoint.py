# SPDX-License-Identifier: Apache-2.0
"""The observed state of an endpoint, and the plan that writes it: status, cost, and protection of its pods.

A NetworkPolicy and a PodDisruptionBudget protect the pods, from connections and from evictions.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.api.inference_deployment import (
    EndpointCost,
    EndpointDisplay,
    InferenceDeployment,
    RevisionStatus,
)
from finetune_operator.api.labels import PROFILE
from finetune_operator.api.meta import Condition
from finetune_operator.engine.resources import DEPLOYMENT, NETWORK_POLICY, POD, POD_DISRUPTION_BUDGET
from finetune_operator.manifests.endpoint import (
    build_disruption_budget,
    build_replicas,
    build_shared_budget,
    endpoint_url,
)
from finetune_operator.manifests.network_policies import build_endpoint_policy
from finetune_operator.observe.deployments import (
    EndpointHealth,
    availability,
    find_trouble,
    image_age,
    set_health,
)
from finetune_operator.observe.device_usage import HELD, device_state, devices_per_pod
from finetune_operator.observe.pod_status import Price
from finetune_operator.plan import Apply, Create, Delete, Event, Manifest, Plan
from finetune_operator.reconcile.inferencedeployment import drift
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import ENDED, with_weights
from finetune_operator.reconcile.inferencedeployment.traffic import (
    Traffic,
    Writes,
    main_revision,
    pod_selector,
    recheck_seconds,
    require_routing,
    traffic_of,
)
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import PassOutcome, earliest, finish_pass
from finetune_operator.status.conditions import shorten, status_manifest
from finetune_operator.status.reasons import ConditionType, EventReason, Reason


def endpoint_cost(endpoint: InferenceDeployment, snapshot: Snapshot) -> EndpointCost:
    """The devices of the pods of all revisions, ready or not, and their price by their ComputeProfiles."""
    held: Counter[str | None] = Counter()
    for pod in snapshot.children[POD].values():
        if device_state(pod) in HELD:
            held[pod["metadata"].get("labels", {}).get(PROFILE)] += devices_per_pod(pod)
    names = (*held, _own_profile(endpoint, snapshot))
    prices = {name: Price.of(snapshot.profiles.get(name or "")) for name in names}
    priced = {profile: price for profile, price in prices.items() if price.per_device_hour is not None}
    currencies = {price.currency for price in priced.values()}
    if len(currencies) != 1:
        return EndpointCost(devices=held.total())
    amount = sum(held[profile] * (price.per_device_hour or 0) for profile, price in priced.items())
    return EndpointCost(devices=held.total(), amount_per_hour=round(amount, 6), currency=currencies.pop())


def _own_profile(endpoint: InferenceDeployment, snapshot: Snapshot) -> str | None:
    """The profile of the next pods, so that an endpoint without pods has the price 0."""
    default = next((name for name, profile in snapshot.profiles.items() if profile.is_default), None)
    return endpoint.spec.compute.profile or default


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


MAX_NAMES_CHARACTERS: Final = 200
"""Limit of the model names in `kubectl get`, in characters."""
FAILURES: Final[Mapping[str, EventReason]] = {
    Reason.ROLLOUT_FAILED: EventReason.ROLLOUT_FAILED,
    Reason.ROLLED_BACK: EventReason.ROLLED_BACK,
}
"""Event reasons of failures; all others are announced as a block."""


@dataclass(frozen=True)
class ObservedEndpoint:
    """The observed state of an endpoint."""

    endpoint: InferenceDeployment
    snapshot: Snapshot

    @property
    def traffic(self) -> Traffic:
        return traffic_of(self.endpoint, self.snapshot)

    @property
    def serving(self) -> str:
        """The revision that serves, apart from one that is rolling out; empty if there is none."""
        return main_revision(self.traffic.weights(), self.endpoint.status.revision)

    def replica_applies(self, replicas: Mapping[str, int]) -> tuple[Apply, ...]:
        """Applies that set the replicas of these revisions' Deployments."""
        return tuple(
            Apply(build_replicas(deployment, replicas[name]))
            for name, deployment in self.snapshot.children[DEPLOYMENT].items()
            if name in replicas and deployment["spec"].get("replicas", 1) != replicas[name]
        )

    def corrections(self, *revisions: str) -> tuple[tuple[Apply, ...], tuple[Event, ...]]:
        """Applies that undo changes by others in these revisions' Deployments, and events about them."""
        applies, events = [], []
        for name, deployment in self.snapshot.children[DEPLOYMENT].items():
            paths = drift.changed_fields(deployment) if name in revisions else ()
            apply = drift.correction(deployment) if paths else None
            if apply is not None:
                message = f"{drift.describe_fields(deployment, paths)} was changed; the operator restores it"
                applies.append(apply)
                events.append(Event("Warning", EventReason.DRIFT_CORRECTED, message))
        return tuple(applies), tuple(events)

    def plan(
        self,
        halt: PassOutcome,
        *,
        create: tuple[Create, ...] = (),
        apply: tuple[Apply, ...] = (),
        delete: tuple[Delete, ...] = (),
        events: tuple[Event, ...] = (),
        revisions: tuple[RevisionStatus, ...] | None = None,
        update: Mapping[str, Any] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> Plan:
        """The plan of the pass, with the status of the endpoint.

        Args:
            halt: how the pass ends.
            create, apply, delete, events: writes and events of the caller.
            revisions: revisions for the status, without weights; None: unchanged.
            update: other fields of the status.
            weights: percent of the requests by revision after this pass; None: unchanged.
        """
        endpoint = self.endpoint
        before = self.traffic.weights()
        after = before if weights is None else weights
        writes = self.traffic.route(after) if after else Writes()
        is_settled = not after or self.traffic.is_settled(after)
        routing = self.traffic.health(after)
        answering = [self.snapshot.children[DEPLOYMENT].get(name, {}).get("status", {}) for name in before]
        ready: int = sum(status.get("readyReplicas", 0) for status in answering)
        shown = after if is_settled else {each.name: each.weight or 0 for each in endpoint.status.revisions}
        listed = with_weights(endpoint.status.revisions if revisions is None else revisions, shown)
        cost = endpoint_cost(endpoint, self.snapshot)
        values: dict[str, Any] = {
            "cost": cost,
            "replicas": sum(status.get("replicas", 0) for status in answering),
            "ready_replicas": ready,
            "revision": main_revision(before, endpoint.status.revision),
            "revisions": listed,
            "selector": pod_selector(before),
            "url": endpoint_url(endpoint),
            "display": EndpointDisplay(
                models=shorten(",".join(endpoint.model_names), MAX_NAMES_CHARACTERS),
                ready=f"{ready}/{endpoint.spec.replicas}",
                weight=_shown_weights(main_revision(after, endpoint.status.revision), listed),
                verdict=_shown_verdict(listed),
                cost_per_hour=_shown_cost(cost),
            ),
            **(update or {}),
        }
        result = finish_pass(
            endpoint,
            endpoint.status.model_copy(update=values),
            require_routing(halt, routing),
            self.snapshot.now,
            announce_failure=FAILURES.get(halt.reason, EventReason.BLOCKED),
        )
        healthy = self._with_health(result.status.conditions, values["revision"], routing)
        status = status_manifest(result.status.model_copy(update={"conditions": healthy}))
        protection = protect(endpoint, self.snapshot, values["revision"], after)
        return Plan(
            (*writes.create, *create),
            (*writes.apply, *apply, *protection.apply),
            (*(delete if is_settled else ()), *writes.delete, *protection.delete),
            status,
            (*events, *result.events),
            earliest(result.requeue_after, recheck_seconds(healthy, self.snapshot.now)),
        )

    def _with_health(
        self, conditions: tuple[Condition, ...], revision: str, routing: EndpointHealth | None
    ) -> tuple[Condition, ...]:
        """Add the conditions that do not depend on the rollout; `revision` is the one that serves."""
        snapshot, generation = self.snapshot, self.endpoint.metadata.generation
        deployment = snapshot.children[DEPLOYMENT].get(revision)
        trouble = find_trouble(revision, deployment, snapshot.children[POD], snapshot.now, snapshot.positions)
        floor = snapshot.facts.trainer_image_floor
        health_of = {
            ConditionType.AVAILABLE: availability(self.endpoint, revision, deployment, trouble),
            ConditionType.IMAGE_CURRENT: image_age(deployment, floor) if floor and deployment else None,
            ConditionType.IN_SYNC: _sync(deployment) if deployment else None,
            ConditionType.ROUTE_ACCEPTED: routing,
        }
        for type_, health in health_of.items():
            conditions = set_health(conditions, type_, health, generation=generation, now=snapshot.now)
        return conditions


def _sync(deployment: Manifest) -> EndpointHealth | None:
    """A changed Deployment that the operator could not restore; None if there is none."""
    paths = drift.changed_fields(deployment)
    if not paths or drift.correction(deployment) is not None:
        return None
    return EndpointHealth(
        "False",
        Reason.OVERRIDDEN,
        f"{drift.describe_fields(deployment, paths)} differs from what the operator set, and was changed"
        " again after a correction: find the admission webhook or policy that changes this Deployment, and"
        " exclude the Deployment from it",
    )


def _shown_weights(serving: str, revisions: tuple[RevisionStatus, ...]) -> str | None:
    """Weight of the serving revision, and after a slash that of a newer one that is rolling out."""
    shown = [each.weight for each in revisions if each.name == serving]
    newest = revisions[0] if revisions else None
    if newest is not None and newest.name != serving and newest.state not in ENDED:
        shown.append(newest.weight)
    return "/".join(str(weight) for weight in shown) or None


def _shown_verdict(revisions: tuple[RevisionStatus, ...]) -> str | None:
    newest = revisions[0] if revisions else None
    if newest is None:
        return None
    return newest.verdict.result if newest.verdict is not None else newest.state


def _shown_cost(cost: EndpointCost) -> str | None:
    if cost.amount_per_hour is None:
        return None
    return f"{cost.currency or ''} {cost.amount_per_hour:.2f}".lstrip()
