"""An endpoint as it is seen, and the status that says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.api.endpointstatus import EndpointDisplay, RevisionStatus
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Condition
from finetune_operator.engine.resources import DEPLOYMENT, POD
from finetune_operator.manifests.serving import build_replicas, endpoint_url
from finetune_operator.observe.deployments import trouble_of
from finetune_operator.observe.endpointhealth import EndpointHealth, availability, image_age, with_health
from finetune_operator.plan import Apply, Create, Delete, Event, Manifest, Plan
from finetune_operator.reconcile.inferencedeployment import drift
from finetune_operator.reconcile.inferencedeployment.protection import protect
from finetune_operator.reconcile.inferencedeployment.revisions import with_weights
from finetune_operator.reconcile.inferencedeployment.traffic import (
    Traffic,
    main_revision,
    pod_selector,
    traffic_of,
)
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.steps import Halt
from finetune_operator.status.conditions import shortened, status_manifest
from finetune_operator.status.reasons import ConditionType, EventReason, Reason

MAX_NAMES_CHARACTERS: Final = 200
"""Characters of model names in `kubectl get`."""
FAILURES: Final[Mapping[str, EventReason]] = {Reason.ROLLOUT_FAILED: EventReason.ROLLOUT_FAILED}
"""How failures are announced; any other one as a block."""


@dataclass(frozen=True)
class Observed:
    """The endpoint as it is, and the status that says so."""

    endpoint: InferenceDeployment
    snapshot: Snapshot

    @property
    def traffic(self) -> Traffic:
        return traffic_of(self.endpoint, self.snapshot)

    @property
    def serving(self) -> str:
        """The revision that gets most of the requests, or nothing."""
        return main_revision(self.traffic.weights())

    def scaling(self, replicas: Mapping[str, int]) -> tuple[Apply, ...]:
        """What gives these revisions' Deployments so many replicas."""
        return tuple(
            Apply(build_replicas(deployment, replicas[name]))
            for name, deployment in self.snapshot.children[DEPLOYMENT].items()
            if name in replicas and deployment["spec"].get("replicas", 1) != replicas[name]
        )

    def restoring(self, *revisions: str) -> tuple[tuple[Apply, ...], tuple[Event, ...]]:
        """What puts back what others changed in these revisions' Deployments, and the events that say so."""
        applies, events = [], []
        for name, deployment in self.snapshot.children[DEPLOYMENT].items():
            paths = drift.changed(deployment) if name in revisions else ()
            apply = drift.correction(deployment) if paths else None
            if apply is not None:
                message = f"{drift.described(deployment, paths)} was changed; the operator puts it back"
                applies.append(apply)
                events.append(Event("Warning", EventReason.DRIFT_CORRECTED, message))
        return tuple(applies), tuple(events)

    def plan(
        self,
        halt: Halt,
        *,
        create: tuple[Create, ...] = (),
        apply: tuple[Apply, ...] = (),
        delete: tuple[Delete, ...] = (),
        events: tuple[Event, ...] = (),
        revisions: tuple[RevisionStatus, ...] | None = None,
        update: Mapping[str, Any] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> Plan:
        """The plan with a status that says how things stand.

        Args:
            halt: how the pass ends.
            create, apply, delete, events: of the caller.
            revisions: the list of them in the status, without weights; None: as before.
            update: other fields of the status.
            weights: percent of the requests by revision after this pass; None: as before.
        """
        endpoint = self.endpoint
        before = self.traffic.weights()
        after = before if weights is None else weights
        answering = [self.snapshot.children[DEPLOYMENT].get(name, {}).get("status", {}) for name in before]
        ready: int = sum(status.get("readyReplicas", 0) for status in answering)
        values: dict[str, Any] = {
            "replicas": sum(status.get("replicas", 0) for status in answering),
            "ready_replicas": ready,
            "revision": main_revision(before),
            "revisions": with_weights(endpoint.status.revisions if revisions is None else revisions, after),
            "selector": pod_selector(before),
            "url": endpoint_url(endpoint),
            "display": EndpointDisplay(
                models=shortened(
                    ",".join(model.name for model in endpoint.spec.models), MAX_NAMES_CHARACTERS
                ),
                ready=f"{ready}/{endpoint.spec.replicas}",
            ),
            **(update or {}),
        }
        result = finish_pass(
            endpoint,
            endpoint.status.model_copy(update=values),
            halt,
            self.snapshot.now,
            announce_failure=FAILURES.get(halt.reason, EventReason.BLOCKED),
        )
        healthy = self._with_health(result.status.conditions, values["revision"])
        status = status_manifest(result.status.model_copy(update={"conditions": healthy}))
        if after:
            writes = self.traffic.route(after)
            create, apply = (*writes.create, *create), (*writes.apply, *apply)
        protection = protect(endpoint, self.snapshot, values["revision"])
        apply, delete = (*apply, *protection.apply), (*delete, *protection.delete)
        return Plan(create, apply, delete, status, (*events, *result.events), result.requeue_after)

    def _with_health(self, conditions: tuple[Condition, ...], revision: str) -> tuple[Condition, ...]:
        """With what holds whatever state the endpoint is in; `revision` is the one that serves."""
        snapshot, generation = self.snapshot, self.endpoint.metadata.generation
        deployment = snapshot.children[DEPLOYMENT].get(revision)
        trouble = trouble_of(revision, snapshot.children[POD], snapshot.now)
        floor = snapshot.facts.trainer_image_floor
        health_of = {
            ConditionType.AVAILABLE: availability(self.endpoint, revision, deployment, trouble),
            ConditionType.IMAGE_CURRENT: image_age(deployment, floor) if floor and deployment else None,
            ConditionType.IN_SYNC: _sync(deployment) if deployment else None,
        }
        for type_, health in health_of.items():
            conditions = with_health(conditions, type_, health, generation=generation, now=snapshot.now)
        return conditions


def _sync(deployment: Manifest) -> EndpointHealth | None:
    """What the operator cannot put back; None where there is nothing of the kind."""
    paths = drift.changed(deployment)
    if not paths or drift.correction(deployment) is not None:
        return None
    return EndpointHealth(
        "False",
        Reason.OVERRIDDEN,
        f"{drift.described(deployment, paths)} is not what the operator set, and what it put back did not"
        " stay: find the admission webhook or policy that changes it, and have it leave this Deployment out",
    )
