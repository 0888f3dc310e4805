# SPDX-License-Identifier: Apache-2.0
"""Cache of the newest known objects of one type. A watch feeds it, lists repair it, passes read it."""

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from finetune_operator.engine.cache_memory import (
    MEBIBYTE,
    NEVER_COMPRESSED,
    CompressionPolicy,
    Compressor,
    NamespaceBound,
    StoredObject,
    StoredObjects,
    UncompressedObjects,
    estimate_bytes,
    intern_strings,
)
from finetune_operator.engine.resources import drop_field_names, version
from finetune_operator.plan import Manifest

MAX_TOMBSTONES: Final = 10_000
"""Number of deletions to remember, so that an older list or event does not restore a deleted object."""

Indexer = Callable[[Manifest], Iterable[str]]
"""Returns the values under which an object is found; a value may come twice."""
Transform = Callable[[Manifest], Manifest]
"""Returns a copy of an object without the fields that no pass reads."""
Listener = Callable[[Manifest | None, Manifest | None], None]
"""Called with the old and the new state after every change."""

MAX_NAMESPACE_MEBIBYTES: Final = 192
"""Default of the memory for the objects of one namespace, in all stores. 4,000 active runs need about 170."""

MAX_UNPACKED: Final = 100
"""Number of settled objects that stay unpacked after a read by name, because a pass reads several times."""

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})

Address = tuple[str, str]
"""Namespace and name."""


class ObjectStore:
    """Transformed objects of one type, by namespace and name and by the indexers.

    State only moves forward: an older state, or one of an object known to be deleted, is ignored. So
    responses to the operator's own writes are put here at once, and a pass reads what it wrote. Only a new
    epoch, which begins when etcd is restored from a snapshot, accepts older states.

    Stored objects have no `managedFields`, or only the names of the managers. Readers must not change them.
    Settled objects are stored packed and unpacked on every read. Prefer `addresses`, `notes`, `uids` or
    `unsettled` over reading all objects.

    A new state that exceeds the bound of its namespace is left out: the store keeps the older state, or none,
    and takes the new one when a list brings it again and it fits.

    Attributes:
        newest: greatest resource version that was seen in this epoch.
    """

    def __init__(
        self,
        indexers: Mapping[str, Indexer] | None = None,
        transform: Transform = lambda obj: obj,
        settled: CompressionPolicy = NEVER_COMPRESSED,
        *,
        keep_managers: bool = False,
        bound: NamespaceBound | None = None,
    ) -> None:
        self._bound = bound or NamespaceBound(MAX_NAMESPACE_MEBIBYTES * MEBIBYTE)
        self._left_out: dict[str, str] = {}
        """Namespaces of the objects whose newest state is left out, by uid."""
        self._objects: dict[str, dict[str, StoredObject]] = {}
        self._indexers = dict(indexers or {})
        self._transform = transform
        self._settled = settled
        self._keep_managers = keep_managers
        self._packer = Compressor()
        self._unpacked: OrderedDict[Address, tuple[int, Manifest]] = OrderedDict()
        self._indexes: dict[str, dict[str, dict[str, StoredObject]]] = {name: {} for name in self._indexers}
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._listeners: list[Listener] = []
        self._epoch_listeners: list[Callable[[], None]] = []
        self._former: set[str] = set()
        """uids of objects whose state is from the previous epoch: any other state is newer."""
        self.newest = 0

    def __len__(self) -> int:
        return sum(len(objects) for objects in self._objects.values())

    def __iter__(self) -> Iterator[Manifest]:
        for held in self._all():
            yield self._read(held)

    def addresses(self) -> Iterator[Address]:
        """Namespace and name of all objects."""
        for namespace, objects in list(self._objects.items()):
            for name in list(objects):
                yield namespace, name

    @property
    def unsettled(self) -> Iterable[Manifest]:
        """The objects that are not settled."""
        return UncompressedObjects(self._all)

    def notes(self) -> Counter[tuple[str, str]]:
        """Number of settled objects per namespace and note."""
        return Counter(
            (namespace, held.note)
            for namespace, objects in self._objects.items()
            for held in objects.values()
            if isinstance(held.state, bytes)
        )

    def noted(self, index: str, value: str) -> Iterator[tuple[str, str]]:
        """Keys and notes of the objects that `indexed` would return."""
        for key, held in self._indexes[index].get(value, EMPTY).items():
            yield key, held.note

    def is_settled(self, namespace: str, name: str) -> bool:
        """Whether the object exists and is settled."""
        held = self._objects.get(namespace, EMPTY).get(name)
        return held is not None and isinstance(held.state, bytes)

    def version_of(self, namespace: str, name: str) -> int:
        """Resource version of the object; 0 if it does not exist."""
        held = self._objects.get(namespace, EMPTY).get(name)
        return 0 if held is None else held.version

    def uids(self) -> Iterator[str]:
        """uids of all objects."""
        return (held.uid for held in self._all())

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def subscribe_epochs(self, listener: Callable[[], None]) -> None:
        """Call the listener when a new epoch begins."""
        self._epoch_listeners.append(listener)

    def begin_epoch(self) -> None:
        """Mark all objects as outdated: etcd was restored, so versions continue at a smaller number.

        Stored objects stay readable until their next state or a complete list replaces them. An equal version
        counts as newer, because the restored API server may have assigned it again.
        """
        self._former = set(self.uids())
        self._deleted.clear()
        self.newest = 0
        for listener in self._epoch_listeners:
            listener()

    def note_version(self, resource_version: int) -> None:
        """Record a version of the API server. Later reads are not older, unless etcd is restored."""
        self.newest = max(self.newest, resource_version)

    def is_older_than_known(self, obj: Manifest, listed_at: int) -> bool:
        """Whether a list has an older state of this object than was known before the list.

        Args:
            obj: the object in the list.
            listed_at: resource version of the list.
        """
        held = self._held(obj)
        return held is not None and version(obj) < self._known(held) <= listed_at

    def get(self, namespace: str, name: str) -> Manifest | None:
        held = self._objects.get(namespace, EMPTY).get(name)
        return None if held is None else self._read(held, (namespace, name))

    def names(self, namespace: str) -> Mapping[str, Manifest]:
        """Live mapping of the objects of a namespace, by name."""
        held = self._objects.get(namespace, EMPTY)
        return StoredObjects(held, lambda name: self._read(held[name], (namespace, name)))

    def indexed(self, index: str, value: str) -> Mapping[str, Manifest]:
        """Objects with this value of the index, by `namespace/name`."""
        held = self._indexes[index].get(value, EMPTY)
        return StoredObjects(held, lambda key: self._read(held[key]))

    def put(self, obj: Manifest) -> bool:
        """Store the object if it is newer than the known state and fits; return whether it was."""
        metadata: dict[str, Any] = obj["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        self.note_version(version(obj))
        held = self._held(obj)
        known = max(self._deleted.get(metadata["uid"], 0), self._known(held) if held is not None else 0)
        if version(obj) <= known:
            return False
        old = None if held is None else self._read(held, (namespace, name))
        if held is not None:
            self._former.discard(held.uid)
            if held.uid != metadata["uid"]:
                self._bury(held.uid, held.version)
        obj = self._transform(drop_field_names(obj, keep_managers=self._keep_managers))
        if not self._settled.is_settled(obj):
            # A settled object is packed, and shares nothing.
            obj = intern_strings(obj)
        new = self._stored(obj)
        if not self._bound.admits(namespace, new.size, held.size if held is not None else 0):
            self._leave_out(namespace, new.uid)
            if held is not None and held.uid != new.uid and old is not None:
                self._drop(namespace, name, old, held)
            return False
        self._take_back(new.uid)
        self._unpacked.pop((namespace, name), None)
        self._replace(namespace, name, obj, old, new)
        self._notify(old, obj)
        return True

    def remove(self, obj: Manifest, at: int | None = None) -> bool:
        """Remove the object with this uid; return whether it was stored.

        Args:
            obj: last state of the object.
            at: resource version at which it was gone; absent: that of `obj`.
        """
        metadata = obj["metadata"]
        self._bury(metadata["uid"], version(obj) if at is None else at)
        self._former.discard(metadata["uid"])
        self._take_back(metadata["uid"])
        held = self._held(obj)
        if held is None or held.uid != metadata["uid"]:
            return False
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        self._drop(namespace, name, self._read(held), held)
        return True

    def prune(self, uids: Collection[str], resource_version: str, namespace: str = "") -> int:
        """Remove the objects that a complete list does not have, except those newer than the list.

        Args:
            uids: uids of all objects in the list.
            resource_version: resource version of the list.
            namespace: listed namespace; empty: all.

        Returns:
            The number of removed objects.
        """
        gone = 0
        known = list(self._objects.get(namespace, EMPTY).values()) if namespace else list(self._all())
        listed_at = int(resource_version)
        for uid, left_in in list(self._left_out.items()):
            if uid not in uids and left_in == (namespace or left_in):
                self._take_back(uid)
        for held in known:
            if held.uid not in uids and self._known(held) <= listed_at:
                gone += self.remove(self._read(held), at=listed_at)
        return gone

    def _all(self) -> Iterator[StoredObject]:
        for objects in list(self._objects.values()):
            yield from list(objects.values())

    def _held(self, obj: Manifest) -> StoredObject | None:
        """The stored object of this namespace and name."""
        metadata = obj["metadata"]
        return self._objects.get(metadata.get("namespace", ""), EMPTY).get(metadata["name"])

    def _read(self, held: StoredObject, keep_as: Address | None = None) -> Manifest:
        """The object, unpacked if necessary. With an address, it stays unpacked for a while."""
        if not isinstance(held.state, bytes):
            return held.state
        if keep_as is None:
            return self._packer.unpack(held.state)
        known = self._unpacked.get(keep_as)
        if known is None or known[0] != held.version:
            known = self._unpacked[keep_as] = (held.version, self._packer.unpack(held.state))
            while len(self._unpacked) > MAX_UNPACKED:
                self._unpacked.popitem(last=False)
        return known[1]

    def _known(self, held: StoredObject) -> int:
        """The version that a new state must exceed."""
        return 0 if held.uid in self._former else held.version

    def _bury(self, uid: str, at: int) -> None:
        self.note_version(at)
        self._deleted[uid] = at
        while len(self._deleted) > MAX_TOMBSTONES:
            self._deleted.popitem(last=False)

    def _stored(self, obj: Manifest) -> StoredObject:
        state = self._packer.pack(obj) if self._settled.is_settled(obj) else obj
        note = sys.intern(self._settled.note(obj))
        return StoredObject(obj["metadata"]["uid"], version(obj), state, note, estimate_bytes(state))

    def _leave_out(self, namespace: str, uid: str) -> None:
        if uid not in self._left_out:
            self._left_out[uid] = namespace
            self._bound.leave_out(namespace)

    def _take_back(self, uid: str) -> None:
        namespace = self._left_out.pop(uid, None)
        if namespace is not None:
            self._bound.take_back(namespace)

    def _drop(self, namespace: str, name: str, old: Manifest, held: StoredObject) -> None:
        self._unpacked.pop((namespace, name), None)
        del self._objects[namespace][name]
        if not self._objects[namespace]:
            del self._objects[namespace]
        self._bound.change(namespace, -held.size)
        self._unindex(old)
        self._notify(old, None)

    def _replace(
        self, namespace: str, name: str, obj: Manifest, old: Manifest | None, held: StoredObject
    ) -> None:
        objects = self._objects.setdefault(namespace, {})
        replaced = objects.get(name)
        self._bound.change(namespace, held.size - (0 if replaced is None else replaced.size))
        objects[sys.intern(name)] = held
        self._unindex(old)
        for index, indexer in self._indexers.items():
            for value in indexer(obj):
                self._indexes[index].setdefault(value, {})[_address(obj)] = held

    def _unindex(self, old: Manifest | None) -> None:
        if old is None:
            return
        for index, indexer in self._indexers.items():
            entries = self._indexes[index]
            for value in set(indexer(old)):
                entries[value].pop(_address(old), None)
                if not entries[value]:
                    del entries[value]

    def _notify(self, old: Manifest | None, new: Manifest | None) -> None:
        for listener in self._listeners:
            listener(old, new)


def _address(obj: Manifest) -> str:
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
