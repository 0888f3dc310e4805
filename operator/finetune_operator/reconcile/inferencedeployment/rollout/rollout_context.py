# SPDX-License-Identifier: Apache-2.0
"""The state of an endpoint and its wanted revision, for one pass."""

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from finetune_operator.api.inference_deployment import InferenceDeployment, RevisionStatus
from finetune_operator.api.labels import REVISION
from finetune_operator.api.rollout_analysis import RevisionAnalysis
from finetune_operator.api.rollout_strategy import DecisionVerdict, RolloutDecision, RolloutDecisionFields
from finetune_operator.engine.resources import DEPLOYMENT, POD
from finetune_operator.manifests.revision import Revision
from finetune_operator.observe.deployments import (
    ServingTrouble,
    capacity_shortage,
    deadline_seconds,
    find_failure_reason,
    find_regression,
    find_trouble,
    has_exceeded_deadline,
)
from finetune_operator.observe.pod_status import has_ended
from finetune_operator.observe.pod_termination import is_overdue, seconds_until_overdue
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.endpoint import ObservedEndpoint
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    REJECTED_STATES,
    find_revision,
    spec_hash,
)
from finetune_operator.reconcile.inferencedeployment.revision.targets import Targets
from finetune_operator.reconcile.inferencedeployment.rollout.analysis import Analysis, phase_of
from finetune_operator.reconcile.inferencedeployment.rollout.strategies import CanarySteps, RoutedSteps
from finetune_operator.reconcile.inferencedeployment.traffic import main_revision
from finetune_operator.reconcile.inputs.snapshot import Snapshot


@dataclass(frozen=True)
class RolloutContext:
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
    def is_routed(self) -> bool:
        """Whether what routes the requests has accepted these weights."""
        routing = self.observed.traffic.health(self.weights)
        return routing is None or routing.status == "True"

    @property
    def serving(self) -> str:
        """The revision that serves, apart from one that is rolling out; empty if there is none."""
        return main_revision(self.weights, self.endpoint.status.revision)

    @property
    def others(self) -> tuple[str, ...]:
        """The revisions that get requests, besides the wanted one."""
        return tuple(name for name in self.weights if name != self.wanted.name)

    @property
    def standby(self) -> str:
        """The revision that is kept while its successor bakes; empty if there is none."""
        deployments = self.snapshot.children[DEPLOYMENT]
        kept = (each.name for each in self.endpoint.status.revisions if each.state == "Standby")
        return next((name for name in kept if name in deployments and name != self.wanted.name), "")

    @property
    def stable(self) -> str:
        """The revision that serves if the wanted one fails; empty if there is none."""
        weights = {name: self.weights[name] for name in self.others}
        return main_revision(weights, self.endpoint.status.revision) or self.standby or self.predecessor

    @property
    def predecessor(self) -> str:
        """The revision that served until the Service moved, if the status does not have the move yet.

        That is so after an operator was killed between the two writes. It may have no replicas left, if the
        wanted one took its room. Empty if there is none.
        """
        name = self.endpoint.status.revision
        is_kept = name in self.snapshot.children[DEPLOYMENT]
        return name if is_kept and name not in {self.wanted.name, *self.weights} else ""

    @property
    def canary(self) -> CanarySteps | None:
        """The steps of the wanted revision; None if it has none."""
        strategy = self.endpoint.spec.strategy
        has_stable = bool(self.others) and self.has_fallback
        if strategy.type != "Canary" or strategy.canary is None or not has_stable:
            return None
        settings = strategy.canary
        kind = CanarySteps if self.endpoint.spec.traffic is None else RoutedSteps
        return kind(settings.steps, self.endpoint.spec.replicas, settings.allow_coarse_weights)

    @property
    def step(self) -> int:
        """The step that the wanted revision has reached."""
        return self.recorded.step or 0 if self.recorded is not None else 0

    @property
    def has_fallback(self) -> bool:
        """Whether another revision serves if the wanted one fails."""
        return self.stable in self.snapshot.children[DEPLOYMENT]

    @property
    def is_recreating(self) -> bool:
        """Whether the strategy or its fallback gives the room of the other revisions to the wanted one."""
        strategy = self.endpoint.spec.strategy
        if not self.others or strategy.type == "Recreate":
            return bool(self.others)
        return strategy.fallback == "Recreate" and (self.has_made_room or self._has_waited_for_capacity)

    @property
    def has_made_room(self) -> bool:
        """Whether the other revisions were scaled to 0 for the wanted revision."""
        deployments = self.snapshot.children[DEPLOYMENT]
        scaled = [deployments[name]["spec"].get("replicas", 1) for name in self.others if name in deployments]
        is_starting = self.recorded is not None and self.recorded.state == "RollingOut"
        return is_starting and bool(scaled) and not any(scaled) and self.endpoint.spec.replicas > 0

    @property
    def seconds_to_fallback(self) -> float | None:
        """Seconds until the wanted revision, which has no capacity, is recreated; None: never."""
        strategy = self.endpoint.spec.strategy
        if strategy.fallback is None or not self.has_fallback:
            return None
        waits = self.recorded is not None and self.recorded.state == "WaitingForCapacity"
        seconds = strategy.progress_deadline_seconds
        return self.seconds_left(seconds) if waits else float(seconds)

    @property
    def _has_waited_for_capacity(self) -> bool:
        return self.shortage is not None and self.seconds_to_fallback == 0.0

    @property
    def has_other_pods(self) -> bool:
        """Whether pods of other revisions have not ended; a terminating pod still has its devices.

        A pod that its node does not end in time is left out: its node is lost, with the devices.
        """
        return any(not is_overdue(pod, self.snapshot.now) for pod in self.other_pods)

    @property
    def seconds_to_room(self) -> float | None:
        """Seconds until a terminating pod of another revision is overdue; None if none is terminating."""
        seconds = (seconds_until_overdue(pod, self.snapshot.now) for pod in self.other_pods)
        return max((each for each in seconds if each is not None), default=None)

    @property
    def other_pods(self) -> tuple[Manifest, ...]:
        """Pods of other revisions that have not ended. Pods of Jobs belong to no revision."""
        return tuple(
            pod
            for pod in self.snapshot.children[POD].values()
            if pod["metadata"].get("labels", {}).get(REVISION) not in {None, self.wanted.name}
            and not has_ended(pod)
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
    def awaits_continue(self) -> bool:
        """Whether `Continue` ends the step of the wanted revision: a pause, or an inconclusive analysis."""
        if self.canary is None or self.recorded is None or self.recorded.state != "Canary":
            return False
        result = self.analysis.result if self.analysis is not None else None
        is_undecided = result is not None and result.verdict != "Pass"
        return self.canary.pause_at(self.step) is not None or is_undecided

    @property
    def is_retried(self) -> bool:
        """Whether a decision starts the wanted revision again."""
        has_failed = self.recorded is not None and self.recorded.state in REJECTED_STATES
        return has_failed and self.verdict == "Promote"

    @cached_property
    def spec_hash(self) -> str:
        return spec_hash(self.endpoint)

    @property
    def trouble(self) -> ServingTrouble | None:
        """The problem that prevents a pod of the wanted revision from serving."""
        snapshot = self.snapshot
        return find_trouble(
            self.wanted.name, self.deployment, snapshot.children[POD], snapshot.now, snapshot.positions
        )

    @property
    def failure(self) -> str | None:
        """The reason that the wanted revision cannot become ready; None while it can."""
        if self.deployment is None:
            return None
        return find_failure_reason(
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
        snapshot = self.snapshot
        return capacity_shortage(self.deployment, snapshot.children[POD], snapshot.now, snapshot.positions)

    @cached_property
    def analysis(self) -> Analysis | None:
        """The analysis of the wanted revision in its present step or bake; None if there is none."""
        step = self.canary.analysis_at(self.step) if self.canary is not None else None
        phase = phase_of(self.endpoint, self.recorded, step, stable=self.stable, standby=self.standby)
        if phase is None:
            return None
        return Analysis(self.endpoint, self.snapshot, self.wanted, phase)

    @property
    def analyzed(self) -> RevisionAnalysis | None:
        """The last result of an analysis of the wanted revision; None if there is none."""
        found = self.analysis.result if self.analysis is not None else None
        return found or (self.recorded.analysis if self.recorded is not None else None)

    @property
    def seconds_to_end_of_bake(self) -> float:
        """Seconds for which the bake continues: until its time is over and its analysis has ended.

        An analysis that does not run prolongs the bake by at most progressDeadlineSeconds.
        """
        strategy = self.endpoint.spec.strategy
        bake = strategy.bake_seconds or 0
        is_measured = self.analysis is None or self.analysis.result is not None
        return self.seconds_left(bake if is_measured else bake + strategy.progress_deadline_seconds)

    @property
    def regression(self) -> str | None:
        """The reason to return the requests that the wanted revision gets to the previous one."""
        analyzed = self.analysis.result if self.analysis is not None else None
        if analyzed is not None and analyzed.verdict == "Fail":
            return analyzed.message
        since = self.recorded.since if self.recorded is not None else None
        if self.deployment is None:
            return f"Deployment {self.wanted.name} was deleted"
        if since is None:
            return None
        return find_regression(self.deployment, self.snapshot.children[POD], since, self.snapshot.now)

    def seconds_left(self, seconds: int) -> float:
        """Seconds until the wanted revision has been in its recorded state and step for this long.

        `since` restarts at each new state and at each step of a canary, and in RollingOut also at an edit of
        the spec that may fix a failed revision (see `with_entry`).
        """
        since = self.recorded.since if self.recorded is not None else None
        waited = self.snapshot.now - since if since is not None else timedelta()
        return max(0.0, seconds - waited.total_seconds())

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


def _identity(decision: RolloutDecisionFields) -> tuple[str, str, int]:
    return decision.revision, decision.verdict, decision.generation
