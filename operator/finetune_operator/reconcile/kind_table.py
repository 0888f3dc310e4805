# SPDX-License-Identifier: Apache-2.0
"""What belongs to a kind, in one row, and what relations and locks of all kinds share.

`registry.KIND_ROWS` has the rows. The API's part of a kind is its row in `api.crd.KINDS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.meta import API_VERSION, Resource
from finetune_operator.engine.cache_memory import NEVER_COMPRESSED, CompressionPolicy
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import Indexer, Transform
from finetune_operator.plan import Key, Manifest, Plan
from finetune_operator.reconcile.inputs.indexes import (
    BY_CONTENT,
    BY_STATE,
    OVER_BUDGET,
    has_ended,
    key_of,
    namespace_of,
    read_status,
)
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_operator.reconcile.platform import queues
from finetune_operator.reconcile.records.retention import waits_for_users
from finetune_operator.reconcile.stages.jobs import refusal_needs

R = TypeVar("R", bound=Resource)

LockName = tuple[str, ...]
"""Key of a lock that a pass holds."""


class IndexedObjects(Protocol):
    """The caches, read by the indexes of `inputs.indexes`."""

    def child(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object of a watched type."""

    def indexed(self, index: str, value: str, model: type[Resource] | None = None) -> Iterable[Manifest]:
        """Objects of all kinds with the index, or of one kind."""

    def is_indexed(self, index: str, value: str, key: Key) -> bool:
        """Whether an object has this value of an index of its kind. It is not unpacked."""

    def resource(self, key: Key) -> Resource | None:
        """The object as a model; None if it does not exist or cannot be parsed."""

    def checkpoints(self, namespace: str) -> CheckpointIndex: ...

    def first_in_line(self, namespace: str, profile: str) -> Key | None:
        """The oldest object of the namespace that waits for the budget of this profile or DEFAULT_PROFILE."""

    def computeprofiles(self) -> Mapping[str, ComputeProfile]:
        """The ComputeProfiles by name."""

    def records_of(self, content: str) -> Iterable[Checkpoint | DatasetVersion]:
        """Records of all namespaces by digest, or the one by `address`."""


class Change:
    """Two states of an object; `old` is None after a creation, `new` after a deletion."""

    def __init__(self, old: Manifest | None, new: Manifest | None) -> None:
        known = new or old
        if known is None:
            raise ValueError("a change needs at least one state of the object")
        self.old = old
        self.new = new
        self.known: Manifest = known
        """The newest state, which is the last one of a deleted object."""
        self.namespace = namespace_of(known)
        self.name: str = known["metadata"]["name"]
        self.states = tuple(state for state in (old, new) if state is not None)


def _no_needs(_resource: Resource, _snapshot: Snapshot) -> Needs:
    return NOTHING


def _no_relations(_change: Change, _objects: IndexedObjects) -> Iterable[Key]:
    return ()


def _no_lock(_key: Key, _objects: IndexedObjects) -> LockName | None:
    return None


def _no_budget(_manifest: Manifest) -> str | None:
    return None


def _whole(manifest: Manifest) -> Manifest:
    return manifest


def _needs_lists(_manifest: Manifest) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow(Generic[R]):
    """What belongs to a kind."""

    model: type[R]
    reconcile: Callable[[R, Snapshot], Plan]
    """Plans one pass over one object."""
    own_needs: Callable[[R, Snapshot], Needs] = _no_needs
    """Names the objects that the pass reads from `Snapshot.looked_up`, given a snapshot without them."""
    relations: Callable[[Change, IndexedObjects], Iterable[Key]] = _no_relations
    """Keys of the objects whose state may depend on a changed object, in addition to those that
    `scheduling.related` finds for all kinds."""
    own_indexers: Mapping[str, Indexer] = field(default_factory=dict)
    """Indexers by index of `inputs.indexes`."""
    contents: Callable[[Manifest], frozenset[str]] | None = None
    """The content that an object needs: digests, and `address` of records. It is also indexed."""
    lock: Callable[[Key, IndexedObjects], LockName | None] = _no_lock
    """Lock of the pass for an object: passes with the same lock must not overlap."""
    awaited_budget: Callable[[Manifest], str | None] = _no_budget
    """The ComputeProfile whose budget an object waits for, or DEFAULT_PROFILE; None if it does not wait."""
    cached: Transform = _whole
    """The part of an object that the cache keeps."""
    compression: CompressionPolicy = NEVER_COMPRESSED
    """For history: objects whose number only grows, and that passes seldom read."""
    is_record: bool = False
    """Whether an object is written once, and at rest once it has a condition."""
    is_listed_first: bool = False
    """Whether passes of other kinds depend on the existence of an object. A new term lists the kind before
    these passes, because the watch may not have delivered the last writes of the previous active process."""
    needs_no_lists: Callable[[Manifest], bool] = _needs_lists
    """Whether the pass for an object that is not being deleted does not depend on the kinds listed first."""
    workload: str | None = None
    """Value of the label `workload` of metrics about the devices of its pods; None if they have none."""
    has_progress: bool = False
    """Whether its pods report the progress of their stage."""

    @property
    def kind(self) -> str:
        """The kind's name."""
        return self.model.__name__

    @property
    def type(self) -> ResourceType:
        """The type of the kind's objects in the Kubernetes API."""
        kind = KINDS_BY_NAME[self.kind]
        return ResourceType(API_VERSION, kind.name, kind.plural, kind.namespaced)

    @property
    def indexers(self) -> Mapping[str, Indexer]:
        """Indexers by index."""
        if self.contents is None:
            return self.own_indexers
        return {**self.own_indexers, BY_CONTENT: self.contents}

    def needs(self, resource: R, snapshot: Snapshot) -> Needs:
        """What the pass reads, with what passes of all kinds read."""
        return queues.merge_needs(
            self.own_needs(resource, snapshot), queues.admission_needs(snapshot), refusal_needs(snapshot)
        )

    def released(self, change: Change, objects: IndexedObjects) -> Iterator[Key]:
        """Terminating records that may have waited until this object no longer needs them."""
        if self.contents is None:
            return
        before, after = (
            frozenset[str]() if state is None else self.contents(state) for state in (change.old, change.new)
        )
        for content in before - after:
            yield from (record_key(each) for each in objects.records_of(content) if waits_for_users(each))

    def next_in_line(self, change: Change, objects: IndexedObjects) -> Iterator[Key]:
        """The next object that waits for a budget which this one has waited for."""
        before, after = (
            None if state is None else self.awaited_budget(state) for state in (change.old, change.new)
        )
        if before is not None and before != after:
            yield from first_in_line(change.namespace, before, objects)


def is_live(manifest: Manifest) -> bool:
    """Whether an object is not being deleted."""
    return "deletionTimestamp" not in manifest["metadata"]


def has_conditions(record: Manifest) -> bool:
    """Whether a live record has its first condition. It hardly ever changes again."""
    return is_live(record) and bool(read_status(record).get("conditions"))


def is_ended(job: Manifest) -> bool:
    """Whether a live run or Evaluation has ended. Passes hardly ever read it again."""
    return is_live(job) and has_ended(job)


def budget_lock(key: Key, objects: IndexedObjects) -> LockName | None:
    """The lock of the pass of an object that waits for a budget of its namespace.

    Each of them counts the devices of the Jobs that those before it have created.
    """
    waits = objects.is_indexed(BY_STATE, OVER_BUDGET, key)
    return ("budget", key.namespace) if waits else None


def first_in_line(namespace: str, profile: str, objects: IndexedObjects) -> Iterator[Key]:
    """The first object that waits for a budget. The next one follows when this one no longer waits."""
    first = objects.first_in_line(namespace, profile)
    if first is not None:
        yield first


def record_key(record: Checkpoint | DatasetVersion) -> Key:
    """The key of a record."""
    return Key(record.kind, record.namespace, record.name)


def indexed_keys(
    objects: IndexedObjects, index: str, value: str, model: type[Resource] | None = None
) -> Iterator[Key]:
    """Keys of the objects of all kinds with this value of an index, or of one kind."""
    return map(key_of, objects.indexed(index, value, model))
