"""The newest known state of objects of one type: fed by a watch, repaired by lists, read by passes."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from finetune_operator.plan import Manifest

TOMBSTONES: Final = 10_000
"""Deletions that are remembered, so that a list or event from before them cannot bring an object back."""

SHARED: Final = 80
"""Characters; a longer text is seldom said twice."""

Indexer = Callable[[Manifest], Iterable[str]]
Transform = Callable[[Manifest], Manifest]
"""An object less what nobody reads; what is given is not changed."""
Listener = Callable[[Manifest | None, Manifest | None], None]
"""Told old and new state of every change."""

NOTHING: Final[Mapping[str, Manifest]] = MappingProxyType({})


def version(obj: Manifest) -> int:
    """The resource version as a number; within one type a greater one is newer."""
    return int(obj["metadata"]["resourceVersion"])


def controller_uid(obj: Manifest) -> str:
    """The uid of the object's controller, or an empty string."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            uid: str = reference["uid"]
            return uid
    return ""


class ObjectStore:
    """Objects of one type by namespace and name, and by what the indexers say, as the transform leaves them.

    State only moves forward: what is older than what is known, or is of an object known to be deleted, is
    ignored. So the answers to our own writes can be put here at once, and a pass reads what it wrote. Only a
    new epoch, which begins when etcd is restored from a snapshot, brings older states back.

    Stored objects have no `managedFields` and must not be changed by readers.

    Attributes:
        newest: the greatest resource version that was seen in this epoch.
    """

    def __init__(
        self, indexers: Mapping[str, Indexer] | None = None, transform: Transform = lambda obj: obj
    ) -> None:
        self._objects: dict[str, dict[str, Manifest]] = {}
        self._indexers = dict(indexers or {})
        self._transform = transform
        self._indexes: dict[str, dict[str, dict[str, Manifest]]] = {name: {} for name in self._indexers}
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._listeners: list[Listener] = []
        self._epoch_listeners: list[Callable[[], None]] = []
        self._former: set[str] = set()
        """uids of objects whose state is of the epoch before: any other state is newer."""
        self.newest = 0

    def __len__(self) -> int:
        return sum(len(objects) for objects in self._objects.values())

    def __iter__(self) -> Iterator[Manifest]:
        for objects in list(self._objects.values()):
            yield from list(objects.values())

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
        self._former = {obj["metadata"]["uid"] for obj in self}
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
        metadata = obj["metadata"]
        held = self.get(metadata.get("namespace", ""), metadata["name"])
        return held is not None and version(obj) < self._known(held) <= listed_at

    def get(self, namespace: str, name: str) -> Manifest | None:
        return self._objects.get(namespace, NOTHING).get(name)

    def names(self, namespace: str) -> Mapping[str, Manifest]:
        """The live mapping of one namespace's objects by name."""
        return self._objects.get(namespace, NOTHING)

    def indexed(self, index: str, value: str) -> Mapping[str, Manifest]:
        """Objects that the indexer `index` files under `value`, keyed `namespace/name`."""
        return self._indexes[index].get(value, NOTHING)

    def put(self, obj: Manifest) -> bool:
        """Take over a newer state; False when it was no news."""
        metadata: dict[str, Any] = obj["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        self.see(version(obj))
        old = self.get(namespace, name)
        known = max(self._deleted.get(metadata["uid"], 0), self._known(old) if old is not None else 0)
        if version(obj) <= known:
            return False
        if old is not None:
            self._former.discard(old["metadata"]["uid"])
        obj = _compact(self._transform(obj))
        obj["metadata"].pop("managedFields", None)
        if old is not None and old["metadata"]["uid"] != metadata["uid"]:
            self._bury(old, version(old))
        self._objects.setdefault(namespace, {})[name] = obj
        self._index(old, obj)
        self._tell(old, obj)
        return True

    def remove(self, obj: Manifest, at: int | None = None) -> bool:
        """This object, told by its uid, is gone; False when it was not known.

        Args:
            obj: its last state.
            at: the resource version at which it was gone; absent: that of `obj`.
        """
        metadata = obj["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        self._bury(obj, version(obj) if at is None else at)
        self._former.discard(metadata["uid"])
        old = self.get(namespace, name)
        if old is None or old["metadata"]["uid"] != metadata["uid"]:
            return False
        del self._objects[namespace][name]
        if not self._objects[namespace]:
            del self._objects[namespace]
        self._index(old, None)
        self._tell(old, None)
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
        known = list(self.names(namespace).values()) if namespace else list(self)
        listed_at = int(resource_version)
        for obj in known:
            if obj["metadata"]["uid"] not in uids and self._known(obj) <= listed_at:
                gone += self.remove(obj, at=listed_at)
        return gone

    def _known(self, held: Manifest) -> int:
        """The version that another state has to be newer than."""
        return 0 if held["metadata"]["uid"] in self._former else version(held)

    def _bury(self, obj: Manifest, at: int) -> None:
        self.see(at)
        self._deleted[obj["metadata"]["uid"]] = at
        while len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)

    def _index(self, old: Manifest | None, new: Manifest | None) -> None:
        for index, indexer in self._indexers.items():
            entries = self._indexes[index]
            if old is not None:
                key = _address(old)
                for value in indexer(old):
                    entries[value].pop(key, None)
                    if not entries[value]:
                        del entries[value]
            if new is not None:
                for value in indexer(new):
                    entries.setdefault(value, {})[_address(new)] = new

    def _tell(self, old: Manifest | None, new: Manifest | None) -> None:
        for listener in self._listeners:
            listener(old, new)


def _compact(value: Any) -> Any:
    """A copy whose strings are shared with all other objects: names of fields, uids, times."""
    if isinstance(value, dict):
        return {sys.intern(key): _compact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_compact(inner) for inner in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= SHARED else value


def _address(obj: Manifest) -> str:
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
