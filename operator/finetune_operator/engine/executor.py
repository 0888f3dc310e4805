"""Carries out a plan, in its order, so that a stale view or a crash at any line does no harm."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from finetune_operator.engine.applying import Stamp
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import AlreadyExists, Conflict, Gone, NameConflict
from finetune_operator.engine.events import EventRecorder
from finetune_operator.engine.metadata import controller_uid, version
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import NEVER_OBSERVED, Apply, Create, Delete, Manifest, Plan

logger = logging.getLogger(__name__)

Stores = Mapping[ResourceType, ObjectStore]

SAME: Final[Mapping[str, Callable[[Manifest], object]]] = {
    "Controller": controller_uid,
    "Digest": lambda obj: obj.get("spec", {}).get("digest"),
    "Any": lambda _obj: True,
    "Unread": lambda _obj: True,
}
"""What two objects have in common when the existing one is what should have been created."""


class Executor:
    """The only place that changes the cluster.

    Args:
        cluster: where to.
        stores: caches of the types that have one; answers to writes go there at once, so that the next
            pass sees them whatever the watch does.
        events: where events go.
        stamp: marks what was applied.
        confirm_absent_before_create: whether an object's absence is confirmed by a GET before it is created.
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
        """Note what is newest, so that what is written from now on is known to be of this term.

        Args:
            types: whose objects are reconciled.
            namespace: one that may be listed; empty for all.

        Raises:
            ApiError: they cannot be listed; then nothing counts as of this term.
        """
        self._begun.clear()
        for type_ in types:
            self._begun[type_] = await self._cluster.newest(type_, namespace)

    async def carry_out(self, primary: Manifest, plan: Plan) -> Manifest:
        """Do what the plan says.

        Args:
            primary: the object that was reconciled, in the very state that the plan was made from.
            plan: what to do.

        Returns:
            The primary as it is afterwards.

        Raises:
            Gone: the primary does not exist any more.
            Conflict: something is not as it was seen; look again.
            NameConflict: something that should be created is somebody else's.
            Rejected, Unavailable: from the API server.
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
        """Write the whole status unless it is what the primary has; the primary as it is afterwards.

        It depends on what was read, so it carries the resource version: a Conflict means to look again.
        """
        if primary.get("status") == status:
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
        """Make sure that the primary is what was reconciled.

        Raises:
            Gone: it is not there, or is another object of the same name.
            Conflict: it changed meanwhile.
        """
        metadata = primary["metadata"]
        live = await self._live(primary)
        if live is None or live["metadata"]["uid"] != metadata["uid"]:
            raise Gone(f"{primary['kind']} {metadata['name']}")
        if live["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise Conflict(f"{primary['kind']} {metadata['name']} changed since it was looked at")

    def _is_new(self, primary: Manifest) -> bool:
        """Whether nobody can have done anything for the object yet.

        It was created in this term, and no pass has written its status. Should it be gone already, that write
        says so, and what was created goes with its owner.
        """
        begun = self._begun.get(self._cluster.types.of(primary))
        observed = primary.get("status", {}).get("observedGeneration", NEVER_OBSERVED)
        return begun is not None and version(primary) > begun and observed == NEVER_OBSERVED

    def _exists(self, create: Create) -> bool:
        """The cache has what should be created: nothing to ask."""
        cached = self._cached(create.manifest)
        return cached is not None and _same(create, cached) and not _is_terminating(cached)

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
        if not _same(create, existing):
            raise NameConflict(existing)
        if _is_terminating(existing):
            raise Conflict(f"{existing['kind']} {existing['metadata']['name']} is still being deleted")

    async def _apply(self, apply: Apply, primary: Manifest) -> None:
        """Apply to the very object that exists, or to nothing at all: never to one that is not ours."""
        manifest = self._stamp.on(apply.manifest)
        uid = manifest["metadata"].get("uid")
        if uid is None:
            existing = self._cached(manifest) or await self._live(manifest)
            if existing is None:
                # Without force: should somebody else be quicker, their fields are not taken over.
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
            left = await self._cluster.delete(delete.manifest, delete.propagation)
            _log("deleted", delete.manifest)
        except Conflict:
            await self._live(delete.manifest)
            raise
        if left is not None:
            self._remember(left)
        else:
            self._forget(delete.manifest)

    async def _live(self, manifest: Manifest) -> Manifest | None:
        """The object as it is now; the cache learns of it."""
        metadata = manifest["metadata"]
        type_ = self._cluster.types.of(manifest)
        before = self._cached(manifest)
        live = await self._cluster.get(type_, metadata.get("namespace", ""), metadata["name"])
        if live is not None:
            if before is not None and version(live) < version(before):
                # Nothing that is read is older than what was known before, unless etcd was restored.
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


def _same(create: Create, existing: Manifest) -> bool:
    trait = SAME[create.same]
    return trait(create.manifest) == trait(existing)


def _log(what: str, manifest: Manifest) -> None:
    metadata = manifest["metadata"]
    about = {"kind": manifest["kind"], "namespace": metadata.get("namespace"), "object": metadata["name"]}
    logger.info("%s %s %s", what, manifest["kind"], metadata["name"], extra=about)


def _is_terminating(obj: Manifest) -> bool:
    return "deletionTimestamp" in obj["metadata"]
