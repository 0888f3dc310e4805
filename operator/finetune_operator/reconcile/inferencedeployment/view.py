"""The state of an endpoint and its wanted revision, for one pass."""

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from finetune_operator.api.endpointstatus import RevisionStatus
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.rolloutstrategy import DecisionVerdict, RolloutDecision, RolloutDecisionFields
from finetune_operator.engine.resources import DEPLOYMENT, POD
from finetune_operator.manifests.labels import REVISION
from finetune_operator.manifests.revision import Revision
from finetune_operator.observe.deployments import (
    capacity_shortage,
    deadline_seconds,
    failure_of,
    has_exceeded_deadline,
    is_ready,
    trouble_of,
)
from finetune_operator.observe.podstatus import has_ended
from finetune_operator.observe.servingpods import ServingTrouble
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.endpoint import ObservedEndpoint
from finetune_operator.reconcile.inferencedeployment.revisions import find_revision, spec_hash
from finetune_operator.reconcile.inferencedeployment.rolloutlimit import must_wait
from finetune_operator.reconcile.inferencedeployment.targets import Targets
from finetune_operator.reconcile.inferencedeployment.traffic import main_revision
from finetune_operator.reconcile.inferencedeployment.transitions import (
    STATES,
    UNPROVEN,
    UNWELCOME,
    Observation,
    State,
)
from finetune_operator.reconcile.inputs.snapshot import Snapshot


@dataclass(frozen=True)
class EndpointView:
    """An endpoint, its wanted revision, and the observed state of both."""

    endpoint: InferenceDeployment
    snapshot: Snapshot
    targets: Targets
    wanted: Revision

    @cached_property
    def observed(self) -> ObservedEndpoint:
        return ObservedEndpoint(self.endpoint, self.snapshot)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Percent of the requests by revision before this pass."""
        return dict(self.observed.traffic.weights())

    @property
    def serving(self) -> str:
        """The revision that gets most of the requests; empty if there is none."""
        return main_revision(self.weights)

    @property
    def others(self) -> tuple[str, ...]:
        """The revisions that get requests, besides the wanted one."""
        return tuple(name for name in self.weights if name != self.wanted.name)

    @property
    def has_fallback(self) -> bool:
        """Whether another revision serves, so requests are served if the wanted one fails."""
        return bool(self.others)

    @property
    def is_recreating(self) -> bool:
        """Whether the wanted revision takes the room of the others, by its strategy or its fallback."""
        strategy = self.endpoint.spec.strategy
        if not self.has_fallback or strategy.type == "Recreate":
            return self.has_fallback
        return strategy.fallback == "Recreate" and (self.has_made_room or self._has_waited_for_capacity)

    @property
    def has_made_room(self) -> bool:
        """Whether the others were scaled to 0 for the wanted revision."""
        deployments = self.snapshot.children[DEPLOYMENT]
        scaled = [deployments[name]["spec"].get("replicas", 1) for name in self.others if name in deployments]
        is_starting = self.recorded is not None and self.recorded.state == "RollingOut"
        return is_starting and bool(scaled) and not any(scaled) and self.endpoint.spec.replicas > 0

    @property
    def seconds_to_fallback(self) -> float | None:
        """Seconds until the wanted revision, which has no capacity, is recreated; None: never."""
        entry, strategy = self.recorded, self.endpoint.spec.strategy
        if strategy.fallback is None or not self.has_fallback:
            return None
        waits = entry is not None and entry.state == "WaitingForCapacity"
        since = entry.since if entry is not None and waits else None
        waited = self.snapshot.now - since if since is not None else timedelta()
        return max(0.0, strategy.progress_deadline_seconds - waited.total_seconds())

    @property
    def _has_waited_for_capacity(self) -> bool:
        return self.shortage is not None and self.seconds_to_fallback == 0.0

    @property
    def has_other_pods(self) -> bool:
        """Whether pods of other revisions have not ended; a terminating pod still has its devices."""
        pods = self.snapshot.children[POD].values()
        return any(
            pod["metadata"].get("labels", {}).get(REVISION) != self.wanted.name and not has_ended(pod)
            for pod in pods
        )

    @property
    def deployment(self) -> Manifest | None:
        return self.snapshot.children[DEPLOYMENT].get(self.wanted.name)

    @property
    def recorded(self) -> RevisionStatus | None:
        """Entry of the wanted revision in the status."""
        return find_revision(self.endpoint.status.revisions, self.wanted.name)

    @property
    def decision(self) -> RolloutDecision | None:
        """The decision about the wanted revision that was not obeyed yet."""
        given, obeyed = self.endpoint.spec.strategy.decision, self.endpoint.status.decision
        if given is None or given.revision != self.wanted.name:
            return None
        return None if obeyed is not None and _identity(given) == _identity(obeyed) else given

    @property
    def verdict(self) -> DecisionVerdict | None:
        """The verdict of that decision."""
        return self.decision.verdict if self.decision is not None else None

    @property
    def is_retried(self) -> bool:
        """Whether a decision starts the wanted revision again."""
        has_failed = self.recorded is not None and self.recorded.state in UNWELCOME
        return has_failed and self.verdict == "Promote"

    @cached_property
    def spec_hash(self) -> str:
        return spec_hash(self.endpoint)

    @property
    def trouble(self) -> ServingTrouble | None:
        """The problem that prevents a pod of the wanted revision from serving."""
        return trouble_of(self.wanted.name, self.snapshot.children[POD], self.snapshot.now)

    @property
    def failure(self) -> str | None:
        """The reason that the wanted revision cannot become ready; None while it can."""
        if self.deployment is None:
            return None
        return failure_of(
            self.deployment,
            self.snapshot.children[POD],
            self.snapshot.now,
            deadline_passed=not self.seconds_to_deadline and (self.shortage is None or self.is_recreating),
        )

    @property
    def shortage(self) -> str | None:
        """The resources that the wanted revision waits for; None if each of its pods has a node."""
        if self.deployment is None:
            return None
        return capacity_shortage(self.deployment, self.snapshot.children[POD], self.snapshot.now)

    @property
    def seconds_to_deadline(self) -> float:
        """Seconds that are left of a deadline that the Deployment reports as exceeded, 0 if none are.

        The Deployment counts the time for which its pods had no node; the deadline counts from their start.
        """
        entry, now = self.recorded, self.snapshot.now
        if entry is None or self.deployment is None or not has_exceeded_deadline(self.deployment):
            return 0.0
        since = {"RollingOut": entry.since, "WaitingForCapacity": now}.get(entry.state)
        if since is None:
            return 0.0
        left = timedelta(seconds=deadline_seconds(self.deployment)) - (now - since)
        return max(0.0, left.total_seconds())

    @property
    def models(self) -> str:
        """Models of the wanted revision, for messages."""
        return ", ".join(f"{name} = {weights.label}" for name, weights in self.wanted.models)


def state_of(view: EndpointView) -> State:
    """The state of the wanted revision in the table.

    A revision that failed or was rolled back stays so until the spec is edited, apart from its replicas and
    such, a decision promotes it, or no other revision serves. A
    revision starts again if it is retired, has lost its requests, or has a state of a newer release.
    """
    entry = view.recorded
    if entry is None:
        return "Pending"
    is_tried_again = entry.spec_hash != view.spec_hash or not view.has_fallback or view.is_retried
    has_ended = {
        "Live": view.serving != view.wanted.name,
        "Failed": is_tried_again,
        "RolledBack": is_tried_again,
        "Retired": True,
    }
    return "Pending" if entry.state not in STATES or has_ended.get(entry.state) else entry.state


def observe(view: EndpointView, state: State) -> Observation:
    """Observe the wanted revision, which is in this state."""
    if view.endpoint.spec.replicas == 0 and state != "Live":
        return Observation.UNPROVABLE
    if state in UNPROVEN and view.verdict == "Abort" and view.has_fallback:
        return Observation.ABORTED
    is_paused = state in UNPROVEN and view.endpoint.spec.strategy.paused and not view.has_made_room
    if is_paused and view.failure is None:
        return Observation.PAUSED
    if view.deployment is None and not _has_slot(view):
        return Observation.NO_SLOT
    is_recreating = state in UNPROVEN and view.is_recreating
    if view.deployment is not None:
        # Nothing serves while a revision is recreated, so its first replica serves at once.
        if is_ready(view.deployment, 1 if is_recreating else view.endpoint.spec.replicas):
            return Observation.READY
        if view.failure is not None:
            return Observation.BROKEN
    if is_recreating and view.has_other_pods:
        return Observation.OCCUPIED
    if view.deployment is None:
        return Observation.ABSENT
    is_short = state in UNPROVEN and not is_recreating and view.shortage is not None
    return Observation.NO_CAPACITY if is_short else Observation.NOT_READY


def _has_slot(view: EndpointView) -> bool:
    """Whether a rollout may start; the first revision of an endpoint needs no slot."""
    everywhere = view.snapshot.rolling_everywhere
    has_begun = not view.has_fallback or view.has_made_room
    return has_begun or not must_wait(view.endpoint, view.wanted.profile, everywhere)


def _identity(decision: RolloutDecisionFields) -> tuple[str, str, int]:
    return decision.revision, decision.verdict, decision.generation
