# SPDX-License-Identifier: Apache-2.0
"""The cluster in memory of local runs, with pods that only a test lets run, to test the reconcilers."""

import json
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from finetune_client.local.cluster import Cluster, at
from finetune_operator.api.labels import STAGE
from finetune_operator.engine import resources
from finetune_operator.engine.errors import refusal
from finetune_operator.engine.resources import (
    LOCAL_QUEUE,
    PENDING_WORKLOADS,
    WORKLOAD,
    ResourceType,
)
from finetune_operator.manifests.labels import CONFIG_DIGEST, NONCE
from finetune_operator.observe.admission import UNKNOWN
from finetune_operator.observe.pod_status import INDEX
from finetune_operator.plan import Event, Manifest
from finetune_operator.reconcile.features.peers import KEY_BYTES
from finetune_operator.reconcile.inputs.related_types import JOB_UID as WORKLOAD_JOB
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, RunProgress
from finetune_trainer.contract.configs import CONFIG_ADAPTER
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.results import Progress, StageResult
from finetune_trainer.contract.vocabulary import Stage

__all__ = ["FACTS", "NAMESPACE", "NOW", "MemoryCluster", "at"]

NOW = datetime(2030, 1, 2, 3, 0, 0, tzinfo=UTC)
FACTS = OperatorFacts(
    namespace="finetune-system", trainer_image="registry.example/trainer:1", nonce_key="0f" * 32
)
NAMESPACE = "team"


class MemoryCluster(Cluster):
    """A cluster whose objects have known uids. Only a test advances the time, and lets pods run and end."""

    def __init__(self, *objects: Manifest, facts: OperatorFacts = FACTS) -> None:
        self.events: list[Event] = []
        self.log: list[str] = []
        self.is_terminating = False
        self.hides_namespace = False
        """Whether the operator has no right to read the namespace."""
        self.kueue: int | None = HTTPStatus.FORBIDDEN
        """Status with which requests for objects of Kueue are refused; None: they are answered."""
        self.positions = UNKNOWN
        """Positions in all queues."""
        self._uids = 0
        super().__init__(facts=facts, namespace=NAMESPACE)
        self.now = NOW
        for manifest in objects:
            self.add(manifest)

    def add(self, manifest: Manifest) -> Manifest:
        """Store an object. A Job starts, as the Job controller starts it."""
        stored = super().add(manifest)
        if stored["kind"] == "Job":
            is_suspended = stored.get("spec", {}).get("suspend", False)
            stored.setdefault("status", {} if is_suspended else {"startTime": at(self.now)})
        return stored

    def new_uid(self) -> str:
        self._uids += 1
        return f"{self._uids:08x}-0000-4000-8000-000000000000"

    def entropy(self) -> bytes:
        return bytes(KEY_BYTES)

    def count(self, entry: str) -> None:
        super().count(entry)
        self.log.append(entry)

    def record(self, about: Manifest, event: Event) -> None:  # noqa: ARG002 - each event of a test is kept
        self.events.append(event)
        self.log.append(f"event {event.reason}")

    def annotate(self, kind: str, name: str, **annotations: str) -> None:
        """Set our annotations, which do not change the generation; `_` in a name means `-`."""
        own = {f"finetune.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.objects[kind, name]["metadata"].setdefault("annotations", {}).update(own)

    def find(self, type_: ResourceType, name: str) -> Manifest | None:
        if type_ == resources.NAMESPACE:
            return self._namespace(name)
        if type_ == PENDING_WORKLOADS:
            return {"kind": "PendingWorkloadsSummary", "metadata": {}, "positions": self.positions}
        if type_ not in (LOCAL_QUEUE, WORKLOAD):
            return super().find(type_, name)
        if self.kueue is not None:
            return refusal(self.kueue, f"{type_.plural} are not installed")
        found = self.of(type_.kind)
        if type_ == LOCAL_QUEUE:
            return found.get(name)
        return next(
            (each for each in found.values() if each["metadata"]["labels"][WORKLOAD_JOB] == name), None
        )

    def _namespace(self, name: str) -> Manifest:
        if self.hides_namespace:
            return refusal(HTTPStatus.FORBIDDEN, f'cannot get resource "namespaces" named {name}')
        found = self.of("Namespace").get(name, {"kind": "Namespace", "metadata": {"name": name}})
        times = {"deletionTimestamp": at(self.now)} if self.is_terminating else {}
        return {**found, "metadata": {**found["metadata"], **times}}

    def stage_job(self, stage: str) -> Manifest:
        """The only Job of this stage, or the only one that has not ended."""
        jobs = [job for job in self.of("Job").values() if job["metadata"]["labels"].get(STAGE) == stage]
        jobs = [job for job in jobs if "conditions" not in job["status"]] or jobs
        if len(jobs) != 1:
            raise AssertionError(f"{len(jobs)} Jobs of stage {stage}")
        return jobs[0]

    def has_stage_job(self, stage: str) -> bool:
        return any(job["metadata"]["labels"].get(STAGE) == stage for job in self.of("Job").values())

    def config(self, stage: str) -> Any:
        """The config of the stage's pod, as the trainer reads it."""
        container = self.stage_job(stage)["spec"]["template"]["spec"]["containers"][0]
        text = next(variable["value"] for variable in container["env"] if variable["name"] == CONFIG_ENV)
        return CONFIG_ADAPTER.validate_json(text)

    def pod(
        self, stage: str, state: Manifest, which: str = "pod", *, index: int | None = None, **status: Any
    ) -> Manifest:
        """Put a pod of a stage in a container state, as the kubelet does.

        Args:
            stage: the stage.
            state: the container state. A result in it repeats the nonce and the digest of the Job, as the
                trainer's does, unless it has others.
            which: part of the name, for pods that follow one another.
            index: completion index, for pods that run together.
            status: further fields of the status.
        """
        job = self.stage_job(stage)
        name = f"{job['metadata']['name']}-{which if index is None else f'{index}-{which}'}"
        marks: Manifest = {} if index is None else {"annotations": {INDEX: str(index)}}
        for part in state.values():
            marks["creationTimestamp"] = part.get("startedAt") or at(self.now)
        owner = {
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        pod = self.objects.get(("Pod", name)) or self.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "labels": job["spec"]["template"]["metadata"]["labels"],
                    "ownerReferences": [owner],
                    **marks,
                },
                "spec": job["spec"]["template"]["spec"],
            }
        )
        bound = {how: _bound(job, part) for how, part in state.items()}
        pod["status"] = {"containerStatuses": [{"name": "trainer", "state": bound}], **status}
        return pod

    def start(self, stage: str, after: int = 0) -> None:
        """Let the stage's container run, `after` seconds from now."""
        self.now += timedelta(seconds=after)
        self.pod(stage, {"running": {"startedAt": at(self.now)}})

    def report(self, stage: Stage, progress: Progress) -> None:
        """Let the newest pod of the stage report its progress."""
        pods = [pod for pod in self.of("Pod").values() if pod["metadata"]["labels"].get(STAGE) == stage]
        self.progress = RunProgress(stage, progress, pods[-1]["metadata"]["uid"])

    def end(self, stage: str, message: str, exit_code: int = 0, after: int = 0, reason: str = "") -> None:
        """Let the stage's container and its Job end, `after` seconds from now."""
        started = self.now
        running = next(
            (
                p
                for p in self.of("Pod").values()
                if p["metadata"]["labels"].get(STAGE) == stage and "running" in _state(p)
            ),
            None,
        )
        if running is not None:
            started = datetime.fromisoformat(_state(running)["running"]["startedAt"])
        self.now += timedelta(seconds=after)
        terminated = {
            "exitCode": exit_code,
            "startedAt": at(started),
            "finishedAt": at(self.now),
            "message": message,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        }
        self.pod(stage, {"terminated": terminated})
        self.end_job(stage, "Failed" if exit_code else "Complete")

    def end_job(self, stage: str, how: str, reason: str = "", message: str = "") -> None:
        """Write the Job's final condition, as the Job controller does."""
        condition = {
            "type": how,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": at(self.now),
        }
        self.stage_job(stage)["status"]["conditions"] = [condition]

    def succeed(self, stage: str, result: StageResult, after: int = 0) -> None:
        self.end(stage, result.to_json(), after=after)


def _bound(job: Manifest, part: Manifest) -> Manifest:
    """A container state whose message, if it is a result, repeats what binds it to the Job."""
    try:
        result = json.loads(part.get("message", ""))
    except ValueError:
        return part
    if not isinstance(result, dict) or "stage" not in result:
        return part
    annotations = job["metadata"].get("annotations", {})
    marks = {"nonce": annotations.get(NONCE), "configDigest": annotations.get(CONFIG_DIGEST)}
    given = {name: mark for name, mark in marks.items() if mark is not None}
    return {**part, "message": json.dumps({**given, **result})}


def _state(pod: Manifest) -> Manifest:
    """State of the pod's container; empty before it has one."""
    statuses: list[Manifest] = pod.get("status", {}).get("containerStatuses", [])
    return next((status["state"] for status in statuses), {})
