# SPDX-License-Identifier: Apache-2.0
"""Execute plans, in an order in which neither a stale cache nor a crash at any line does harm.

An apply that would change nothing, by the cache, is not sent. An event is posted at most once per hour.
"""

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import AlreadyExists, ApiError, Conflict, Gone, NameConflict, Rejected
from finetune_operator.engine.resources import EVENT, ResourceType, controller_uid, version
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import NEVER_OBSERVED, Apply, Create, Delete, Event, Manifest, Plan, drop_empty

SELECTOR: Final = "selector"


class Stamp:
    """Annotation of applied objects: a hash of the applied manifest.

    An object can have all applied fields and still have fields that only an older release applied. The hash
    detects this.

    Args:
        annotation: key of the annotation.
    """

    def __init__(self, annotation: str) -> None:
        self._annotation = annotation

    def on(self, manifest: Manifest) -> Manifest:
        """A copy with the annotation and without the resourceVersion."""
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
        stable = {**manifest, "metadata": {key: value for key, value in metadata.items() if key != "uid"}}
        digest = hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]
        annotations = {**(metadata.get("annotations") or {}), self._annotation: digest}
        return {**manifest, "metadata": {**metadata, "annotations": annotations}}

    def matches(self, existing: Manifest, manifest: Manifest) -> bool:
        """Whether an apply of the (stamped) manifest would change nothing."""
        return contains(existing, manifest)


def contains(existing: Any, wanted: Any) -> bool:
    """Whether `existing` has everything that `wanted` has. It may have more: the API server adds defaults.

    A selector must be equal, because it has no defaults, and one more label in it selects fewer pods.
    """
    if isinstance(wanted, dict):
        return isinstance(existing, dict) and all(
            key in existing
            and (existing[key] == value if key == SELECTOR else contains(existing[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(existing, list)
            and len(existing) == len(wanted)
            and all(map(contains, existing, wanted))
        )
    return bool(existing == wanted)


logger = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 3600.0
"""Seconds within which an equal event about the same object is not posted again."""
MAX_REMEMBERED_EVENTS: Final = 10_000
MESSAGE_LIMIT: Final = 1024
CLUSTER_EVENTS: Final = "default"
"""Namespace of events about cluster-scoped objects."""


class EventRecorder:
    """Posts events about objects.

    The name of an event is a hash of its content. So a restarted process does not repeat an event while the
    API server keeps the first one, one hour by default.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        component: str,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._component = component
        self._instance = instance
        self._clock = clock
        self._posted: OrderedDict[str, float] = OrderedDict()

    async def record(self, about: Manifest, event: Event) -> None:
        """Post the event. A failure is only logged, because nothing depends on events."""
        metadata = about["metadata"]
        content = "\0".join((metadata["uid"], event.reason, event.message))
        name = f"{metadata['name']}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        if not self._is_new(name):
            return
        try:
            await self._cluster.create(self._manifest(name, about, event))
        except AlreadyExists:
            return
        except ApiError as error:
            del self._posted[name]
            is_expected = isinstance(error, Rejected) and error.is_for_terminating_namespace
            level = logging.DEBUG if is_expected else logging.WARNING
            logger.log(level, "cannot post event %s of %s: %s", event.reason, metadata["name"], error)

    def _is_new(self, name: str) -> bool:
        now = self._clock()
        posted_at = self._posted.get(name)
        if posted_at is not None and now - posted_at < REPEAT_SECONDS:
            return False
        self._posted[name] = now
        self._posted.move_to_end(name)
        while len(self._posted) > MAX_REMEMBERED_EVENTS:
            self._posted.popitem(last=False)
        return True

    def _manifest(self, name: str, about: Manifest, event: Event) -> Manifest:
        metadata = about["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": metadata.get("namespace", CLUSTER_EVENTS)},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                **({"namespace": metadata["namespace"]} if "namespace" in metadata else {}),
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MESSAGE_LIMIT],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }


Stores = Mapping[ResourceType, ObjectStore]

SAME: Final[Mapping[str, Callable[[Manifest], object]]] = {
    "Controller": controller_uid,
    "Digest": lambda obj: obj.get("spec", {}).get("digest"),
    "Any": lambda _obj: True,
    "Unread": lambda _obj: True,
}
"""Property by which an existing object counts as the one to create: it must be equal in both."""


class Executor:
    """Makes all changes that passes decide on.

    Other parts of the process write only what belongs to the process itself: the Lease, events (by the
    EventRecorder), token reviews, and the certificate Secret and EndpointSlice of the report endpoint.

    Args:
        cluster: client of the API server.
        stores: caches by type, for types that have one. Responses to writes are put there at once, so that
            the next pass sees them before the watch does.
        events: recorder of the plan's events.
        stamp: annotation of applied objects.
        confirm_absent_before_create: whether to confirm by a GET that an object does not exist before it is
            created.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        stores: Stores,
        events: EventRecorder,
        stamp: Stamp,
        confirm_absent_before_create: Callable[[Manifest], bool],
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._events = events
        self._stamp = stamp
        self._confirm_absent_before_create = confirm_absent_before_create
        self._begun: dict[ResourceType, int] = {}

    async def begin_term(self, types: Iterable[ResourceType], namespace: str = "") -> None:
        """Record the newest resource versions, to recognize objects that are created in this term.

        Args:
            types: types of reconciled objects.
            namespace: a namespace that may be listed; empty: all namespaces.

        Raises:
            ApiError: a type cannot be listed. Its objects then do not count as created in this term.
        """
        self._begun.clear()
        for type_ in types:
            self._begun[type_] = await self._cluster.newest(type_, namespace)

    async def carry_out(self, primary: Manifest, plan: Plan) -> Manifest:
        """Execute the plan.

        Args:
            primary: the reconciled object, in the state that the plan was made from.
            plan: changes to make.

        Returns:
            The primary after the changes.

        Raises:
            Gone: the primary does not exist any more.
            Conflict: an object differs from the one that was read; reconcile again.
            NameConflict: an object to create exists and has another owner.
            Rejected, Unavailable: errors of the API server.
        """
        creates = tuple(each for each in plan.create if not self._exists(each))
        applies = tuple(each for each in plan.apply if not self._satisfied(each, primary))
        deletes = tuple(each for each in plan.delete if not self._is_deleting(each))
        if (creates or applies or deletes) and not self._is_new(primary):
            await self.confirm(primary)
        for create in creates:
            await self._create(create)
        for apply in applies:
            await self._apply(apply, primary)
        for delete in deletes:
            await self._delete(delete)
        is_terminating = _is_terminating(primary)
        if plan.metadata is not None and not is_terminating:
            primary = await self._write_metadata(primary, plan.metadata)
        if plan.status is not None:
            primary = await self.write_status(primary, plan.status)
        for event in plan.events:
            await self._events.record(primary, event)
        if plan.metadata is not None and is_terminating:
            primary = await self._write_metadata(primary, plan.metadata)
        return primary

    async def write_status(self, primary: Manifest, status: Manifest) -> Manifest:
        """Write the whole status unless it is equal, and return the primary after the write.

        The request has the resource version of the primary, because the status was computed from it.

        Raises:
            Conflict: the primary changed in the meantime; reconcile again.
        """
        if drop_empty(primary.get("status") or {}) == status:
            return primary
        metadata = primary["metadata"]
        identifying = ("name", "namespace", "uid", "resourceVersion")
        manifest = {
            "apiVersion": primary["apiVersion"],
            "kind": primary["kind"],
            "metadata": {key: metadata[key] for key in identifying if key in metadata},
            "status": status,
        }
        try:
            return self._remember(await self._cluster.apply_status(manifest))
        except Conflict:
            await self._live(primary)
            raise

    async def _write_metadata(self, primary: Manifest, metadata: Manifest) -> Manifest:
        try:
            written = await self._cluster.patch_metadata(primary, metadata)
        except Conflict:
            await self._live(primary)
            raise
        if _is_terminating(written) and not written["metadata"].get("finalizers"):
            self._forget(written)
            return written
        return self._remember(written)

    async def confirm(self, primary: Manifest) -> None:
        """Confirm by a GET that the primary is the object that was reconciled.

        Raises:
            Gone: it does not exist any more, or another object has its name.
            Conflict: it changed in the meantime.
        """
        metadata = primary["metadata"]
        live = await self._live(primary)
        if live is None or live["metadata"]["uid"] != metadata["uid"]:
            raise Gone(f"{primary['kind']} {metadata['name']}")
        if live["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise Conflict(f"{primary['kind']} {metadata['name']} changed since it was read")

    def _is_new(self, primary: Manifest) -> bool:
        """Whether no process can have acted on the object before.

        It was created in this term, and no pass has written its status. If it is already deleted, the write
        of its status fails, and Kubernetes deletes the new children with their owner.
        """
        begun = self._begun.get(self._cluster.types.of(primary))
        observed = primary.get("status", {}).get("observedGeneration", NEVER_OBSERVED)
        return begun is not None and version(primary) > begun and observed == NEVER_OBSERVED

    def _exists(self, create: Create) -> bool:
        """Whether the cache has the object to create, so that no request is needed."""
        cached = self._cached(create.manifest)
        return cached is not None and _is_same(create, cached) and not _is_terminating(cached)

    def _satisfied(self, apply: Apply, primary: Manifest) -> bool:
        cached = self._cached(apply.manifest)
        return (
            cached is not None
            and controller_uid(cached) in {"", primary["metadata"]["uid"]}
            and self._stamp.matches(cached, self._stamp.on(apply.manifest))
        )

    def _is_deleting(self, delete: Delete) -> bool:
        cached = self._cached(delete.manifest)
        return (
            cached is not None
            and cached["metadata"]["uid"] == delete.manifest["metadata"]["uid"]
            and _is_terminating(cached)
        )

    async def _create(self, create: Create) -> None:
        manifest = create.manifest
        if create.same == "Any" or self._confirm_absent_before_create(manifest):
            existing = await self._live(manifest)
            if existing is not None:
                self._accept(create, existing)
                return
        try:
            self._remember(await self._cluster.create(manifest))
            _log("created", manifest)
        except AlreadyExists:
            if create.same == "Unread":
                return
            existing = await self._live(manifest)
            if existing is None:
                raise
            self._accept(create, existing)

    def _accept(self, create: Create, existing: Manifest) -> None:
        if not _is_same(create, existing):
            raise NameConflict(existing)
        if _is_terminating(existing):
            raise Conflict(f"{existing['kind']} {existing['metadata']['name']} is still being deleted")

    async def _apply(self, apply: Apply, primary: Manifest) -> None:
        """Apply to exactly the existing object, or create it; never change an object of another owner."""
        manifest = self._stamp.on(apply.manifest)
        uid = manifest["metadata"].get("uid")
        if uid is None:
            existing = self._cached(manifest) or await self._live(manifest)
            if existing is None:
                # Without force: if another client creates it first, its fields are not taken over.
                self._remember(await self._cluster.apply(manifest, force=False, part=apply.part))
                _log("created", manifest)
                return
            if controller_uid(existing) != primary["metadata"]["uid"]:
                raise NameConflict(existing)
            uid = existing["metadata"]["uid"]
        manifest["metadata"]["uid"] = uid
        try:
            self._remember(await self._cluster.apply(manifest, part=apply.part))
            _log("changed", manifest)
        except Conflict:
            await self._live(manifest)
            raise

    async def _delete(self, delete: Delete) -> None:
        try:
            terminating = await self._cluster.delete(delete.manifest, delete.propagation)
            _log("deleted", delete.manifest)
        except Conflict:
            await self._live(delete.manifest)
            raise
        if terminating is not None:
            self._remember(terminating)
        else:
            self._forget(delete.manifest)

    async def _live(self, manifest: Manifest) -> Manifest | None:
        """The current object by a GET, which also updates the cache."""
        metadata = manifest["metadata"]
        type_ = self._cluster.types.of(manifest)
        before = self._cached(manifest)
        live = await self._cluster.get(type_, metadata.get("namespace", ""), metadata["name"])
        if live is not None:
            if before is not None and version(live) < version(before):
                # A GET returns an older version than the cache only after a restore of etcd.
                self._stores[type_].begin_epoch()
            return self._remember(live)
        cached = self._cached(manifest)
        if cached is not None:
            self._stores[type_].remove(cached)
        return None

    def _remember(self, obj: Manifest) -> Manifest:
        store = self._store(obj)
        if store is not None:
            store.put(obj)
        return obj

    def _forget(self, obj: Manifest) -> None:
        store = self._store(obj)
        if store is not None:
            store.remove(obj)

    def _cached(self, manifest: Manifest) -> Manifest | None:
        store = self._store(manifest)
        metadata = manifest["metadata"]
        return store.get(metadata.get("namespace", ""), metadata["name"]) if store is not None else None

    def _store(self, manifest: Manifest) -> ObjectStore | None:
        return self._stores.get(self._cluster.types.of(manifest))


def _is_same(create: Create, existing: Manifest) -> bool:
    trait = SAME[create.same]
    return trait(create.manifest) == trait(existing)


def _log(what: str, manifest: Manifest) -> None:
    metadata = manifest["metadata"]
    about = {"kind": manifest["kind"], "namespace": metadata.get("namespace"), "object": metadata["name"]}
    logger.info("%s %s %s", what, manifest["kind"], metadata["name"], extra=about)


def _is_terminating(obj: Manifest) -> bool:
    return "deletionTimestamp" in obj["metadata"]
