# SPDX-License-Identifier: Apache-2.0
"""An API server in memory: it stores the objects of one namespace, and carries out the plans of reconcilers.

Nothing here knows processes or files. Controllers, a kubelet and a folder of objects are built on it; the
tests of the reconcilers use it too.
"""

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from secrets import token_bytes
from typing import Any, Final, Literal
from uuid import uuid4

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.finetune_job import FineTuneJob
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
from finetune_operator.plan import Create, Event, Key, Manifest, Plan
from finetune_operator.reconcile.features.peers import KEY_BYTES
from finetune_operator.reconcile.inputs.related_types import LookedUp
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, RunProgress, Snapshot
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.reconcile.stages.jobs import JOB_UID
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.snapshots import SnapshotReader

ObjectKey = tuple[str, str]
"""Kind and name of an object."""
MAX_PASSES: Final = 50
"""Passes over all objects after which reconcilers that still change something count as faulty."""


def at(moment: datetime) -> str:
    """The time as the API server writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class NameTaken(Exception):
    """An object with this name that is not ours exists already."""


class NotSettled(AssertionError):
    """The reconcilers change something in each pass."""


class Cluster:
    """Objects by kind and name in one namespace.

    Args:
        objects: the first objects.
        facts: settings of the operator.
        namespace: the only namespace.

    Attributes:
        now: time of the next pass. The owner advances it.
        progress: newest progress report of a running stage.
        writes: number of changes so far.
    """

    def __init__(self, *objects: Manifest, facts: OperatorFacts, namespace: str) -> None:
        self.now = datetime.now(UTC)
        self.facts = facts
        self.namespace = namespace
        self.objects: dict[ObjectKey, Manifest] = {}
        self.progress: RunProgress | None = None
        self.writes = 0
        self.caches = Caches()
        self._reader = SnapshotReader(self.caches)
        self._watched: dict[ObjectKey, Manifest] = {}
        """Each object as the caches have it."""
        self._version = 0
        for manifest in objects:
            self.add(manifest)

    def written(self, key: ObjectKey) -> None:
        """Called after each change of an object, also after its removal. For subclasses."""

    def record(self, about: Manifest, event: Event) -> None:
        """Called for each event about an object. For subclasses."""

    def count(self, entry: str) -> None:  # noqa: ARG002 - subclasses keep the entries
        """Count a change; `entry` describes it."""
        self.writes += 1

    def new_uid(self) -> str:
        """The uid of a new object."""
        return str(uuid4())

    def entropy(self) -> bytes:
        """Random bytes for the keys that a pass makes."""
        return token_bytes(KEY_BYTES)

    def add(self, manifest: Manifest) -> Manifest:
        """Store an object as the API server does: with a uid, a generation and a creation time."""
        stored = deepcopy(manifest)
        kind, metadata = stored["kind"], stored["metadata"]
        uid = self.new_uid()
        metadata.setdefault("uid", uid)
        metadata.setdefault("generation", 1)
        metadata.setdefault("creationTimestamp", at(self.now))
        if kind not in KINDS_BY_NAME or KINDS_BY_NAME[kind].namespaced:
            metadata.setdefault("namespace", self.namespace)
        if kind in KINDS_BY_NAME:
            stored.setdefault("status", {"observedGeneration": -1})
        if kind == "Pod" and (owner := controller_of(stored)) is not None:
            metadata.setdefault("labels", {}).setdefault(JOB_UID, owner)  # as the Job controller does
        self.objects[kind, metadata["name"]] = stored
        self.written((kind, metadata["name"]))
        return stored

    def set_status(self, kind: str, name: str, status: Manifest) -> None:
        """Replace the status of an object, as controllers and the kubelet do."""
        stored = self.objects[kind, name]
        if stored.get("status") != status:
            stored["status"] = deepcopy(status)
            self.writes += 1
            self.written((kind, name))

    def change(self, kind: str, name: str, **spec: Any) -> None:
        """Edit fields of a spec."""
        manifest = self.objects[kind, name]
        manifest["spec"].update(spec)
        manifest["metadata"]["generation"] += 1
        self.written((kind, name))

    def delete(self, kind: str, name: str) -> None:
        """Delete an object; it is terminating while it has finalizers."""
        metadata = self.objects[kind, name]["metadata"]
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", at(self.now))
            self.written((kind, name))
        else:
            self.remove(kind, name)

    def remove(self, kind: str, name: str) -> None:
        """Remove an object and its dependents."""
        gone = self.objects.pop((kind, name))
        self.written((kind, name))
        for key, child in list(self.objects.items()):
            if controller_of(child) == gone["metadata"]["uid"]:
                self.remove(*key)

    def of(self, kind: str) -> dict[str, Manifest]:
        """The objects of a kind by name."""
        return {name: manifest for (each, name), manifest in self.objects.items() if each == kind}

    def get(self, kind: str, name: str) -> Resource:
        """An object of our kinds as its model. Raises KeyError if it does not exist."""
        return KINDS_BY_NAME[kind].model.model_validate(self.objects[kind, name])

    def job(self, name: str) -> FineTuneJob:
        """A FineTuneJob as its model."""
        return FineTuneJob.model_validate(self.objects["FineTuneJob", name])

    def reader(self) -> SnapshotReader:
        """The caches of a process that has watched all objects."""
        for key, watched in list(self._watched.items()):
            if _identity_of(self.objects.get(key)) != _identity_of(watched):
                self._watch(self._watched.pop(key), "DELETED")
        for key, manifest in self.objects.items():
            if key[0] in self.caches.by_kind and manifest != self._watched.get(key):
                # An object may be changed in place, but not what the caches have.
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
        namespace = self.namespace if KINDS_BY_NAME[kind].namespaced else ""
        resource = reader.resource(Key(kind, namespace, name))
        if resource is None:
            raise KeyError(f"{kind} {name} is not there, or cannot be read")
        snapshot = reader.snapshot(
            resource,
            now=self.now,
            facts=self.facts,
            entropy=self.entropy(),
            service_accounts=frozenset(self.of("ServiceAccount")),
            progress=self.progress,
        )
        return resource, replace(snapshot, looked_up=self._looked_up(resource, snapshot))

    def _looked_up(self, resource: Resource, snapshot: Snapshot) -> LookedUp:
        needs = {**KIND_ROWS[resource.kind].needs(resource, snapshot)}
        if resource.metadata.deletion_timestamp is not None:
            needs[resources.NAMESPACE] = frozenset({self.namespace})
        return {type_: {name: self.find(type_, name) for name in needs[type_]} for type_ in needs}

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
            self.count(f"delete {delete.manifest['metadata']['name']}")
            self.delete(delete.manifest["kind"], delete.manifest["metadata"]["name"])
        if crash_before_status:
            return
        stored = self.objects[kind, name]
        if plan.status is not None and plan.status != stored["status"]:
            self.writes += 1
            stored["status"] = deepcopy(plan.status)
            self.written((kind, name))
        for event in plan.events:
            self.record(stored, event)
        if plan.metadata is not None:
            self.writes += 1
            self._write_metadata(kind, name, plan.metadata)

    def _write_metadata(self, kind: str, name: str, new: Manifest) -> None:
        metadata = self.objects[kind, name]["metadata"]
        metadata["annotations"] = {**metadata.get("annotations", {}), **new.get("annotations", {})}
        metadata["finalizers"] = new.get("finalizers", metadata.get("finalizers", []))
        if "deletionTimestamp" in metadata and not metadata["finalizers"]:
            self.remove(kind, name)
        else:
            self.written((kind, name))

    def _create(self, create: Create) -> None:
        key = create.manifest["kind"], create.manifest["metadata"]["name"]
        existing = self.objects.get(key)
        if existing is None:
            self.count(f"create {' '.join(key)}")
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
            self.count(f"apply {' '.join(key)}")
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
            self.count(f"apply {' '.join(key)}")
            if manifest["kind"] == HTTP_ROUTE.kind:
                # Of other kinds nothing observes the generation.
                applied["metadata"] = {**applied["metadata"], "generation": metadata["generation"] + 1}
            self.objects[key] = applied
            self.written(key)

    def condition(self, kind: str, name: str, type_: str) -> Manifest | None:
        """The condition of this type; None if the object has none."""
        conditions = self.objects[kind, name]["status"].get("conditions", ())
        return next((condition for condition in conditions if condition["type"] == type_), None)

    def states(self, kind: str, name: str) -> dict[str, str]:
        """The conditions that are True, with their reasons."""
        conditions = self.objects[kind, name]["status"].get("conditions", ())
        return {c["type"]: c["reason"] for c in conditions if c["status"] == "True"}

    def find(self, type_: ResourceType, name: str) -> Manifest | None:
        """An object that a pass looks up; None if it does not exist."""
        if type_ == resources.NAMESPACE:
            return {"kind": "Namespace", "metadata": {"name": name}}
        if type_ in (LOCAL_QUEUE, WORKLOAD):
            return refusal(HTTPStatus.NOT_FOUND, f"{type_.plural} are not installed")
        return None if type_ == PENDING_WORKLOADS else self.of(type_.kind).get(name)

    def settle(self) -> None:
        """Reconcile all objects until nothing changes any more.

        Raises:
            NotSettled: it does not end.
        """
        for _ in range(MAX_PASSES):
            before = self.writes
            for kind, name in list(self.objects):
                if kind in KIND_ROWS and (kind, name) in self.objects:
                    self.reconcile(kind, name)
            if self.writes == before:
                return
        raise NotSettled("the reconcilers do not settle")


def _identity(create: Create, manifest: Manifest) -> str | None:
    if create.same == "Controller":
        return controller_of(manifest)
    digest: str = manifest["spec"]["digest"]
    return digest


def _identity_of(manifest: Manifest | None) -> tuple[str, ...] | None:
    """An object with this uid in another namespace is another object."""
    if manifest is None:
        return None
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["uid"]


def controller_of(manifest: Manifest) -> str | None:
    """The uid of the object's controller."""
    owners = manifest["metadata"].get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)
