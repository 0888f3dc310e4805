"""One pass of an endpoint towards the revision it should serve.

The Service's selector says what serves. A new revision comes up beside the old one; when it is ready the
Service moves, and only then the old one goes. A revision that cannot start is recorded as failed and removed;
what serves keeps serving. No revision goes live before a pod of it was ready: without replicas, what serves
stays.
"""

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.inferencedeployment import InferenceDeployment, RevisionStatus, ServedModelStatus
from finetune_operator.manifests.labels import REVISION, RUNNER
from finetune_operator.manifests.serviceaccount import build_runner_account
from finetune_operator.manifests.serving import (
    Revision,
    build_deployment,
    endpoint_url,
)
from finetune_operator.plan import Create, Delete, Event, Manifest, Plan
from finetune_operator.reconcile.inferencedeployment.endpoint import Observed
from finetune_operator.reconcile.inferencedeployment.revisions import (
    RevisionState,
    failure_of,
    is_ready,
    spec_hash,
    state_of,
    trouble_of,
    with_state,
)
from finetune_operator.reconcile.inferencedeployment.rolloutlimit import must_wait
from finetune_operator.reconcile.inferencedeployment.targets import Targets
from finetune_operator.reconcile.snapshot import Snapshot
from finetune_operator.reconcile.steps import Done, Failed, Halt, Working
from finetune_operator.status.reasons import EventReason, Reason


class Rollout:
    """One pass towards the wanted revision."""

    def __init__(
        self, endpoint: InferenceDeployment, snapshot: Snapshot, targets: Targets, wanted: Revision
    ) -> None:
        self.endpoint = endpoint
        self.snapshot = snapshot
        self.targets = targets
        self.wanted = wanted
        self.observed = Observed(endpoint, snapshot)
        self.spec_hash = spec_hash(endpoint)
        self.revisions: tuple[RevisionStatus, ...] = endpoint.status.revisions

    def plan(self) -> Plan:
        deployment = self.snapshot.deployments.get(self.wanted.name)
        if self._has_failed():
            return self._keep_serving(deployment)
        if self.endpoint.spec.replicas == 0 and not self._is_live():
            return self._put_off()
        if deployment is None:
            return self._queue() if self._must_wait else self._start()
        if is_ready(deployment, self.endpoint.spec.replicas):
            return self._finish()
        if self._is_live():
            return self._degraded(deployment)
        failure = failure_of(deployment, self.snapshot.pods, self.snapshot.now)
        if failure is not None:
            return self._fail(failure)
        return self._wait()

    def _has_failed(self) -> bool:
        """A failed revision is tried again only after somebody has edited more than the replicas."""
        entry = state_of(self.revisions, self.wanted.name)
        failed = entry is not None and (entry.state, entry.spec_hash) == ("Failed", self.spec_hash)
        return failed and not self._only_one

    def _is_live(self) -> bool:
        entry = state_of(self.revisions, self.wanted.name)
        return entry is not None and entry.state == "Live" and self.observed.serving == self.wanted.name

    @property
    def _only_one(self) -> bool:
        """Nothing else serves, so the wanted revision keeps trying."""
        return self.observed.serving in ("", self.wanted.name)

    def _start(self) -> Plan:
        facts = self.snapshot.facts
        deployment = build_deployment(
            self.endpoint, self.wanted, facts.trainer_image, facts.image_pull_policy
        )
        creates = [Create(deployment)]
        if RUNNER not in self.snapshot.service_accounts:
            creates.insert(0, Create(build_runner_account(self.endpoint.namespace), same="Any"))
        self._mark(self.wanted.name, "RollingOut")
        message = f"revision {self.wanted.name}: {self._described()}"
        return self._result(
            Working(Reason.ROLLING_OUT, f"{message} is starting"),
            create=tuple(creates),
            events=(Event("Normal", EventReason.ROLLOUT_STARTED, message),),
            point_at=self.wanted.name,
        )

    def _put_off(self) -> Plan:
        """Without replicas nothing shows whether the revision can serve, so nothing of it is started."""
        serving = self.observed.serving
        until = f"; {serving} serves until then" if serving else ""
        message = (
            f"spec.replicas is 0: revision {self.wanted.name} ({self._described()}) starts with the first"
            f" replica{until}"
        )
        return self._result(Done(Reason.SCALED_TO_ZERO, message), keep=(serving,))

    @property
    def _must_wait(self) -> bool:
        """A first revision never waits: nothing serves beside it."""
        everywhere = self.snapshot.rolling_everywhere
        return not self._only_one and must_wait(self.endpoint, self.wanted.profile, everywhere)

    def _queue(self) -> Plan:
        profile = self.wanted.profile
        # Naming the others would make each of their rollouts a write to all that wait.
        message = (
            f"revision {self.wanted.name} ({self._described()}) waits until other endpoints have rolled"
            f" out: ComputeProfile {profile.name} has maxConcurrentRollouts"
            f" {profile.spec.max_concurrent_rollouts}"
        )
        return self._result(Working(Reason.QUEUED, message))

    def _wait(self) -> Plan:
        self._mark(self.wanted.name, "RollingOut")
        trouble = trouble_of(self.wanted.name, self.snapshot.pods, self.snapshot.now)
        if trouble is None:
            return self._result(Working(Reason.ROLLING_OUT, f"revision {self.wanted.name} is starting"))
        return self._result(
            Working(trouble.reason, f"revision {self.wanted.name} is not ready: {trouble.message}")
        )

    def _degraded(self, deployment: Manifest) -> Plan:
        """Replicas restart or are added; the rollout itself is long over."""
        ready = deployment.get("status", {}).get("readyReplicas", 0)
        trouble = trouble_of(self.wanted.name, self.snapshot.pods, self.snapshot.now)
        why = f": {trouble.message}" if trouble is not None else ""
        reason = trouble.reason if trouble is not None else Reason.SCALING
        message = f"{ready} of {self.endpoint.spec.replicas} replicas of {self.wanted.name} are ready{why}"
        hopeless = ready == 0 and trouble is not None and trouble.final
        halt = Failed(reason, message) if hopeless else Working(reason, message)
        return self._result(halt, keep=(self.wanted.name,))

    def _finish(self) -> Plan:
        entry = state_of(self.revisions, self.wanted.name)
        events: tuple[Event, ...] = ()
        if entry is None or entry.state != "Live":
            events = (
                Event(
                    "Normal",
                    EventReason.ROLLOUT_SUCCEEDED,
                    f"revision {self.wanted.name}: {self._described()}",
                ),
            )
        if self.observed.serving != self.wanted.name:
            self._retire(self.observed.serving)
        self._mark(self.wanted.name, "Live")
        update = {
            "revision": self.wanted.name,
            "selector": f"{REVISION}={self.wanted.name}",
            "base_model_digest": self.wanted.base_digest,
            "models": self._served_models(),
        }
        return self._result(self._verdict(), events=events, update=update)

    def _fail(self, failure: str) -> Plan:
        self._mark(self.wanted.name, "Failed", Reason.ROLLOUT_FAILED, failure)
        return self._result(Failed(Reason.ROLLOUT_FAILED, self._failure_message(failure)))

    def _keep_serving(self, deployment: Manifest | None) -> Plan:
        entry = state_of(self.revisions, self.wanted.name)
        failure = entry.message if entry is not None else ""
        delete = (Delete(deployment, "Background"),) if deployment is not None else ()
        return self._result(Failed(Reason.ROLLOUT_FAILED, self._failure_message(failure)), delete=delete)

    def _failure_message(self, failure: str) -> str:
        still = "" if self._only_one else f"; {self.observed.serving} keeps serving"
        advice = "" if self._only_one else "; edit the spec, or promote another checkpoint, to try again"
        return f"revision {self.wanted.name} ({self._described()}) failed: {failure}{still}{advice}"

    def _verdict(self) -> Halt:
        held_back = "; ".join(problem.problem for problem in self.targets.problems)
        hard = [p for p in self.targets.problems if p.reason and p.reason != Reason.WAITING_FOR_CHECKPOINT]
        if hard:
            return Failed(hard[0].reason or Reason.INVALID_SPEC, held_back)
        if any(problem.weights is None for problem in self.targets.problems):
            return Working(Reason.WAITING_FOR_CHECKPOINT, held_back)
        serving = f"serving {self._described()} at {endpoint_url(self.endpoint)}"
        return Done(Reason.SERVING, f"{serving}; {held_back}" if held_back else serving)

    def _described(self) -> str:
        return ", ".join(f"{name} = {weights.label}" for name, weights in self.wanted.models)

    def _served_models(self) -> tuple[ServedModelStatus, ...]:
        before = {model.name: model for model in self.endpoint.status.models}
        served = []
        for name, weights in self.wanted.models:
            old = before.get(name)
            if old is None or (old.checkpoint, old.digest) != (weights.checkpoint, weights.digest):
                since = self.snapshot.now.replace(microsecond=0)
                old = ServedModelStatus(
                    name=name, checkpoint=weights.checkpoint, digest=weights.digest, since=since
                )
            served.append(old)
        return tuple(served)

    def _mark(self, name: str, state: RevisionState, reason: str = "", message: str = "") -> None:
        self.revisions = with_state(
            self.revisions,
            name,
            state,
            now=self.snapshot.now,
            reason=reason,
            message=message,
            spec_hash=self.spec_hash if state in ("RollingOut", "Failed") else "",
        )

    def _result(
        self,
        halt: Halt,
        *,
        create: tuple[Create, ...] = (),
        delete: tuple[Delete, ...] = (),
        events: tuple[Event, ...] = (),
        update: Mapping[str, Any] | None = None,
        keep: tuple[str, ...] = (),
        point_at: str = "",
    ) -> Plan:
        """The plan, which also scales what serves and removes Deployments that nobody needs any more."""
        keep = keep or (self.wanted.name, self.observed.serving)
        restored, said = self.observed.restoring(*keep)
        apply, events = (*self.observed.scaling(*keep), *restored), (*events, *said)
        for name, deployment in self.snapshot.deployments.items():
            if name not in keep and not any(d.manifest is deployment for d in delete):
                delete = (*delete, Delete(deployment, "Background"))
                self._retire(name)
        return self.observed.plan(
            halt,
            create=create,
            apply=apply,
            delete=delete,
            events=events,
            update={"revisions": self.revisions, **(update or {})},
            point_at=point_at,
        )

    def _retire(self, name: str) -> None:
        entry = state_of(self.revisions, name)
        if entry is not None and entry.state != "Failed":
            self._mark(name, "Retired")
