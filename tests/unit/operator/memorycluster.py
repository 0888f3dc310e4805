# SPDX-License-Identifier: Apache-2.0
"""A cluster in memory that carries out plans, to test the reconcilers without an API server."""

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.labels import STAGE
from finetune_operator.api.meta import Resource
from finetune_operator.engine import resources
from finetune_operator.engine.errors import refusal
from finetune_operator.engine.resources import (
    HTTP_ROUTE,
    LOCAL_QUEUE,
    PENDING_WORKLOADS,
    WORKLOAD,
    ResourceType,
)
from finetune_operator.manifests.labels import CONFIG_DIGEST, NONCE
from finetune_operator.observe.admission import UNKNOWN
from finetune_operator.observe.pod_status import INDEX
from finetune_operator.plan import Create, Event, Key, Manifest, Plan
from finetune_operator.reconcile.features.peers import KEY_BYTES
from finetune_operator.reconcile.inputs.related_types import JOB_UID as WORKLOAD_JOB
from finetune_operator.reconcile.inputs.related_types import LookedUp
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, RunProgress, Snapshot
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.reconcile.stages.jobs import JOB_UID
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.snapshots import SnapshotReader
from finetune_trainer.contract.configs import CONFIG_ADAPTER
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.results import Progress, StageResult
from finetune_trainer.contract.vocabulary import Stage

NOW = datetime(2030, 1, 2, 3, 0, 0, tzinfo=UTC)
FACTS = OperatorFacts(
    namespace="finetune-system", trainer_image="registry.example/trainer:1", nonce_key="0f" * 32
)
NAMESPACE = "team"

ObjectKey = tuple[str, str]


def at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class NameTaken(Exception):
    """An object with this name that is not ours exists already."""


class MemoryCluster:
    """Objects by kind and name in one namespace; only a test advances the time."""

    def __init__(self, *objects: Manifest, facts: OperatorFacts = FACTS) -> None:
        self.now = NOW
        self.facts = facts
        self.objects: dict[ObjectKey, Manifest] = {}
        self.events: list[Event] = []
        self.log: list[str] = []
        self.writes = 0
        self.progress: RunProgress | None = None
        self.is_terminating = False
        self.hides_namespace = False
        """Whether the operator has no right to read the namespace."""
        self.kueue: int | None = HTTPStatus.FORBIDDEN
        """Status with which requests for objects of Kueue are refused; None: they are answered."""
        self.positions = UNKNOWN
        """Positions in all queues."""
        self._uids = 0
        self.caches = Caches()
        self._reader = SnapshotReader(self.caches)
        self._watched: dict[ObjectKey, Manifest] = {}
        """Each object as the caches have it."""
        self._version = 0
        for manifest in objects:
            self.add(manifest)

    def add(self, manifest: Manifest) -> Manifest:
        """Store an object as the API server does: with a uid, a generation and a creation time."""
        stored = deepcopy(manifest)
        self._uids += 1
        metadata = stored["metadata"]
        metadata.setdefault("uid", f"{self._uids:08x}-0000-4000-8000-000000000000")
        metadata.setdefault("generation", 1)
        metadata.setdefault("creationTimestamp", at(self.now))
        if stored["kind"] != "ComputeProfile":
            metadata.setdefault("namespace", NAMESPACE)
        if stored["kind"] in KINDS_BY_NAME:
            stored.setdefault("status", {"observedGeneration": -1})
        if stored["kind"] == "Job":
            # As the Job controller does.
            is_suspended = stored.get("spec", {}).get("suspend", False)
            stored.setdefault("status", {} if is_suspended else {"startTime": at(self.now)})
        if stored["kind"] == "Pod" and (uid := _controller(stored)) is not None:
            metadata.setdefault("labels", {}).setdefault(JOB_UID, uid)  # as the Job controller does
        self.objects[stored["kind"], metadata["name"]] = stored
        return stored

    def change(self, kind: str, name: str, **spec: Any) -> None:
        """Edit fields of a spec."""
        manifest = self.objects[kind, name]
        manifest["spec"].update(spec)
        manifest["metadata"]["generation"] += 1

    def annotate(self, kind: str, name: str, **annotations: str) -> None:
        """Set our annotations, which do not change the generation; `_` in a name means `-`."""
        own = {f"finetune.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.objects[kind, name]["metadata"].setdefault("annotations", {}).update(own)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object; it is terminating while it has finalizers."""
        metadata = self.objects[kind, name]["metadata"]
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", at(self.now))
        else:
            self.remove(kind, name)

    def remove(self, kind: str, name: str) -> None:
        """Remove an object and its dependents."""
        gone = self.objects.pop((kind, name))
        for key, child in list(self.objects.items()):
            if _controller(child) == gone["metadata"]["uid"]:
                self.remove(*key)

    def of(self, kind: str) -> dict[str, Manifest]:
        return {name: manifest for (each, name), manifest in self.objects.items() if each == kind}

    def get(self, kind: str, name: str) -> Resource:
        return KINDS_BY_NAME[kind].model.model_validate(self.objects[kind, name])

    def job(self, name: str) -> FineTuneJob:
        return FineTuneJob.model_validate(self.objects["FineTuneJob", name])

    def reader(self) -> SnapshotReader:
        """The caches of a process that has watched all objects."""
        for key, watched in list(self._watched.items()):
            if _identity_of(self.objects.get(key)) != _identity_of(watched):
                self._watch(self._watched.pop(key), "DELETED")
        for key, manifest in self.objects.items():
            if key[0] in self.caches.by_kind and manifest != self._watched.get(key):
                # A test may change the object in place, but not what the caches have.
                self._watched[key] = deepcopy(manifest)
                self._watch(self._watched[key], "MODIFIED")
        return self._reader

    def _watch(self, manifest: Manifest, event: Literal["DELETED", "MODIFIED"]) -> None:
        self._version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self._version)}
        store = self.caches.by_kind[manifest["kind"]]
        (store.remove if event == "DELETED" else store.put)({**manifest, "metadata": metadata})

    def snapshot(self, kind: str, name: str) -> tuple[Resource, Snapshot]:
        """The object, and the snapshot of a pass over it."""
        reader = self.reader()
        namespace = NAMESPACE if KINDS_BY_NAME[kind].namespaced else ""
        resource = reader.resource(Key(kind, namespace, name))
        if resource is None:
            raise KeyError(f"{kind} {name} is not there, or cannot be read")
        snapshot = reader.snapshot(
            resource,
            now=self.now,
            facts=self.facts,
            entropy=bytes(KEY_BYTES),
            service_accounts=frozenset(self.of("ServiceAccount")),
            progress=self.progress,
        )
        return resource, replace(snapshot, looked_up=self._looked_up(resource, snapshot))

    def _looked_up(self, resource: Resource, snapshot: Snapshot) -> LookedUp:
        needs = {**KIND_ROWS[resource.kind].needs(resource, snapshot)}
        if resource.metadata.deletion_timestamp is not None:
            needs[resources.NAMESPACE] = frozenset({NAMESPACE})
        return {type_: {name: self._find(type_, name) for name in needs[type_]} for type_ in needs}

    def _find(self, type_: ResourceType, name: str) -> Manifest | None:
        if type_ == resources.NAMESPACE:
            return self._namespace(name)
        if type_ == PENDING_WORKLOADS:
            return {"kind": "PendingWorkloadsSummary", "metadata": {}, "positions": self.positions}
        if type_ not in (LOCAL_QUEUE, WORKLOAD):
            return self.of(type_.kind).get(name)
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

    def plan(self, kind: str, name: str) -> Plan:
        """The plan of a pass over this object."""
        return KIND_ROWS[kind].reconcile(*self.snapshot(kind, name))

    def reconcile(self, kind: str, name: str) -> Plan:
        """Carry out one pass over this object."""
        plan = self.plan(kind, name)
        self.carry_out(kind, name, plan)
        return plan

    def carry_out(self, kind: str, name: str, plan: Plan, *, crash_before_status: bool = False) -> None:
        for create in plan.create:
            self._create(create)
        for apply in plan.apply:
            self._apply(apply.manifest)
        for delete in plan.delete:
            self._wrote(f"delete {delete.manifest['metadata']['name']}")
            self.delete(delete.manifest["kind"], delete.manifest["metadata"]["name"])
        if crash_before_status:
            return
        stored = self.objects[kind, name]
        if plan.status is not None and plan.status != stored["status"]:
            self.writes += 1
            stored["status"] = deepcopy(plan.status)
        self.events.extend(plan.events)
        self.log.extend(f"event {event.reason}" for event in plan.events)
        if plan.metadata is not None:
            self.writes += 1
            self._write_metadata(kind, name, plan.metadata)

    def _write_metadata(self, kind: str, name: str, new: Manifest) -> None:
        metadata = self.objects[kind, name]["metadata"]
        metadata["annotations"] = {**metadata.get("annotations", {}), **new.get("annotations", {})}
        metadata["finalizers"] = new.get("finalizers", metadata.get("finalizers", []))
        if "deletionTimestamp" in metadata and not metadata["finalizers"]:
            self.remove(kind, name)

    def _create(self, create: Create) -> None:
        key = create.manifest["kind"], create.manifest["metadata"]["name"]
        existing = self.objects.get(key)
        if existing is None:
            self._wrote(f"create {' '.join(key)}")
            self.add(create.manifest)
        elif create.same not in {"Any", "Unread"} and _identity(create, existing) != _identity(
            create, create.manifest
        ):
            raise NameTaken(key)

    def _apply(self, manifest: Manifest) -> None:
        """Apply as the executor does: no write if nothing changes, and only to the object that was seen."""
        key = manifest["kind"], manifest["metadata"]["name"]
        existing = self.objects.get(key)
        if existing is None:
            self._wrote(f"apply {' '.join(key)}")
            self.add(manifest)
            return
        metadata = existing["metadata"]
        if manifest["metadata"].get("uid", metadata["uid"]) != metadata["uid"]:
            raise NameTaken(key)
        annotations = {**metadata.get("annotations", {}), **manifest["metadata"].get("annotations", {})}
        applied = {**existing, "spec": {**existing["spec"], **manifest["spec"]}}
        if annotations:
            applied["metadata"] = {**metadata, "annotations": annotations}
        if applied != existing:
            self._wrote(f"apply {' '.join(key)}")
            if manifest["kind"] == HTTP_ROUTE.kind:
                # Of other kinds no test observes the generation.
                applied["metadata"] = {**applied["metadata"], "generation": metadata["generation"] + 1}
            self.objects[key] = applied

    def _wrote(self, entry: str) -> None:
        self.writes += 1
        self.log.append(entry)

    def settle(self) -> None:
        """Reconcile all objects until nothing changes any more."""
        for _ in range(50):
            before = self.writes
            for kind, name in list(self.objects):
                if kind in KIND_ROWS and (kind, name) in self.objects:
                    self.reconcile(kind, name)
            if self.writes == before:
                return
        raise AssertionError("the reconcilers do not settle")

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

    def condition(self, kind: str, name: str, type_: str) -> Manifest | None:
        conditions = self.objects[kind, name]["status"].get("conditions", ())
        return next((condition for condition in conditions if condition["type"] == type_), None)

    def states(self, kind: str, name: str) -> dict[str, str]:
        """The conditions that are True, with their reasons."""
        conditions = self.objects[kind, name]["status"].get("conditions", ())
        return {c["type"]: c["reason"] for c in conditions if c["status"] == "True"}


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


def _identity(create: Create, manifest: Manifest) -> str | None:
    if create.same == "Controller":
        return _controller(manifest)
    digest: str = manifest["spec"]["digest"]
    return digest


def _state(pod: Manifest) -> Manifest:
    """State of the pod's container; empty before it has one."""
    statuses: list[Manifest] = pod.get("status", {}).get("containerStatuses", [])
    return next((status["state"] for status in statuses), {})


def _identity_of(manifest: Manifest | None) -> tuple[str, ...] | None:
    """An object with this uid in another namespace is another object."""
    if manifest is None:
        return None
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["uid"]


def _controller(manifest: Manifest) -> str | None:
    owners = manifest["metadata"].get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)
