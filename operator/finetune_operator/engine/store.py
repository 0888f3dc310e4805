"""The newest known state of objects of one type: fed by a watch, repaired by lists, read by passes."""

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from finetune_operator.engine.metadata import version
from finetune_operator.engine.packing import (
    NEVER,
    Packer,
    PackingPolicy,
    StoredObject,
    StoredObjects,
    Unsettled,
    compact,
)
from finetune_operator.plan import Manifest

MAX_TOMBSTONES: Final = 10_000
"""Deletions that are remembered, so that a list or event from before them cannot bring an object back."""

Indexer = Callable[[Manifest], Iterable[str]]
Transform = Callable[[Manifest], Manifest]
"""An object less what nobody reads; what is given is not changed."""
Listener = Callable[[Manifest | None, Manifest | None], None]
"""Told old and new state of every change."""

MANAGER: Final = ("manager", "subresource")
"""What may be kept of an entry of `managedFields`, most of which is the names of fields."""
MAX_UNPACKED: Final = 100
"""Settled objects that stay unpacked after they were read by name, because a pass reads several times."""

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


Address = tuple[str, str]
"""Namespace and name."""


class ObjectStore:
    """Objects of one type by namespace and name, and by what the indexers say, as the transform leaves them.

    State only moves forward: what is older than what is known, or is of an object known to be deleted, is
    ignored. So the answers to our own writes can be put here at once, and a pass reads what it wrote. Only a
    new epoch, which begins when etcd is restored from a snapshot, brings older states back.

    Stored objects have no `managedFields`, or only names in it, and must not be changed by readers. Settled
    ones are held packed and unpacked when they are read: what can do without reading all of them uses
    `addresses`, `notes`, `uids` or `unsettled`.

    Attributes:
        newest: the greatest resource version that was seen in this epoch.
    """

    def __init__(
        self,
        indexers: Mapping[str, Indexer] | None = None,
        transform: Transform = lambda obj: obj,
        settled: PackingPolicy = NEVER,
        *,
        keep_managers: bool = False,
    ) -> None:
        self._objects: dict[str, dict[str, StoredObject]] = {}
        self._indexers = dict(indexers or {})
        self._transform = transform
        self._settled = settled
        self._keep_managers = keep_managers
        self._packer = Packer()
        self._unpacked: OrderedDict[Address, tuple[int, Manifest]] = OrderedDict()
        self._indexes: dict[str, dict[str, dict[str, StoredObject]]] = {name: {} for name in self._indexers}
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._listeners: list[Listener] = []
        self._epoch_listeners: list[Callable[[], None]] = []
        self._former: set[str] = set()
        """uids of objects whose state is of the epoch before: any other state is newer."""
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
        return Unsettled(self._all)

    def notes(self) -> Counter[tuple[str, str]]:
        """How many settled objects there are of each namespace and note."""
        return Counter(
            (namespace, held.note)
            for namespace, objects in self._objects.items()
            for held in objects.values()
            if isinstance(held.state, bytes)
        )

    def noted(self, index: str, value: str) -> Iterator[tuple[str, str]]:
        """Notes of the objects that `indexed` would find, with what they are keyed by."""
        for key, held in self._indexes[index].get(value, NOTHING).items():
            yield key, held.note

    def is_settled(self, namespace: str, name: str) -> bool:
        """Whether there is such an object, and it is settled."""
        held = self._objects.get(namespace, NOTHING).get(name)
        return held is not None and isinstance(held.state, bytes)

    def version_of(self, namespace: str, name: str) -> int:
        """Resource version of the object; 0 where there is none."""
        held = self._objects.get(namespace, NOTHING).get(name)
        return 0 if held is None else held.version

    def uids(self) -> Iterator[str]:
        """Those of all objects."""
        return (held.uid for held in self._all())

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def subscribe_epochs(self, listener: Callable[[], None]) -> None:
        """Have the listener called when a new epoch begins."""
        self._epoch_listeners.append(listener)

    def begin_epoch(self) -> None:
        """Take everything for outdated: etcd was restored, so versions begin again at a smaller number.

        What is held stays readable until the next state of it, or a complete list, says otherwise. An equal
        version counts as another state: it may have been given again since.
        """
        self._former = set(self.uids())
        self._deleted.clear()
        self.newest = 0
        for listener in self._epoch_listeners:
            listener()

    def see(self, resource_version: int) -> None:
        """There was such a version: what is read from now on cannot be older, unless etcd is restored."""
        self.newest = max(self.newest, resource_version)

    def contradicts(self, obj: Manifest, listed_at: int) -> bool:
        """Whether a list holds a state of this object that is older than one before the list.

        Args:
            obj: as it is listed.
            listed_at: the resource version of the list.
        """
        held = self._held(obj)
        return held is not None and version(obj) < self._known(held) <= listed_at

    def get(self, namespace: str, name: str) -> Manifest | None:
        held = self._objects.get(namespace, NOTHING).get(name)
        return None if held is None else self._read(held, (namespace, name))

    def names(self, namespace: str) -> Mapping[str, Manifest]:
        """The live mapping of one namespace's objects by name."""
        held = self._objects.get(namespace, NOTHING)
        return StoredObjects(held, lambda name: self._read(held[name], (namespace, name)))

    def indexed(self, index: str, value: str) -> Mapping[str, Manifest]:
        """Objects that the indexer `index` files under `value`, keyed `namespace/name`."""
        held = self._indexes[index].get(value, NOTHING)
        return StoredObjects(held, lambda key: self._read(held[key]))

    def put(self, obj: Manifest) -> bool:
        """Take over a newer state; False when it was no news."""
        metadata: dict[str, Any] = obj["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        self.see(version(obj))
        held = self._held(obj)
        known = max(self._deleted.get(metadata["uid"], 0), self._known(held) if held is not None else 0)
        if version(obj) <= known:
            return False
        old = None if held is None else self._read(held, (namespace, name))
        if held is not None:
            self._former.discard(held.uid)
            if held.uid != metadata["uid"]:
                self._bury(held.uid, held.version)
        self._unpacked.pop((namespace, name), None)
        obj = compact(self._slim(obj))
        self._replace(namespace, name, obj, old)
        self._notify(old, obj)
        return True

    def remove(self, obj: Manifest, at: int | None = None) -> bool:
        """This object, told by its uid, is gone; False when it was not known.

        Args:
            obj: its last state.
            at: the resource version at which it was gone; absent: that of `obj`.
        """
        metadata = obj["metadata"]
        self._bury(metadata["uid"], version(obj) if at is None else at)
        self._former.discard(metadata["uid"])
        held = self._held(obj)
        if held is None or held.uid != metadata["uid"]:
            return False
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        old = self._read(held)
        self._unpacked.pop((namespace, name), None)
        del self._objects[namespace][name]
        if not self._objects[namespace]:
            del self._objects[namespace]
        self._unindex(old)
        self._notify(old, None)
        return True

    def prune(self, uids: Collection[str], resource_version: str, namespace: str = "") -> int:
        """What a complete list does not hold, and is not newer than the list, is gone.

        Args:
            uids: of all objects in the list.
            resource_version: of the list.
            namespace: that was listed; empty for all.

        Returns:
            How many were gone.
        """
        gone = 0
        known = list(self._objects.get(namespace, NOTHING).values()) if namespace else list(self._all())
        listed_at = int(resource_version)
        for held in known:
            if held.uid not in uids and self._known(held) <= listed_at:
                gone += self.remove(self._read(held), at=listed_at)
        return gone

    def _all(self) -> Iterator[StoredObject]:
        for objects in list(self._objects.values()):
            yield from list(objects.values())

    def _held(self, obj: Manifest) -> StoredObject | None:
        """What is held under the object's name."""
        metadata = obj["metadata"]
        return self._objects.get(metadata.get("namespace", ""), NOTHING).get(metadata["name"])

    def _read(self, held: StoredObject, keep_as: Address | None = None) -> Manifest:
        """The object; one that was unpacked is kept for a while where its address is given."""
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

    def _slim(self, obj: Manifest) -> Manifest:
        """What is kept of the object; it is not changed."""
        metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        if self._keep_managers:
            managed = obj["metadata"].get("managedFields") or ()
            metadata["managedFields"] = [
                {key: each[key] for key in MANAGER if key in each} for each in managed
            ]
        return self._transform({**obj, "metadata": metadata})

    def _known(self, held: StoredObject) -> int:
        """The version that another state has to be newer than."""
        return 0 if held.uid in self._former else held.version

    def _bury(self, uid: str, at: int) -> None:
        self.see(at)
        self._deleted[uid] = at
        while len(self._deleted) > MAX_TOMBSTONES:
            self._deleted.popitem(last=False)

    def _replace(self, namespace: str, name: str, obj: Manifest, old: Manifest | None) -> None:
        is_settled = self._settled.is_settled(obj)
        held = StoredObject(
            obj["metadata"]["uid"],
            version(obj),
            self._packer.pack(obj) if is_settled else obj,
            sys.intern(self._settled.note(obj)),
        )
        self._objects.setdefault(namespace, {})[sys.intern(name)] = held
        self._unindex(old)
        for index, indexer in self._indexers.items():
            for value in indexer(obj):
                self._indexes[index].setdefault(value, {})[_address(obj)] = held

    def _unindex(self, old: Manifest | None) -> None:
        if old is None:
            return
        for index, indexer in self._indexers.items():
            entries = self._indexes[index]
            for value in indexer(old):
                entries[value].pop(_address(old), None)
                if not entries[value]:
                    del entries[value]

    def _notify(self, old: Manifest | None, new: Manifest | None) -> None:
        for listener in self._listeners:
            listener(old, new)


def _address(obj: Manifest) -> str:
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
