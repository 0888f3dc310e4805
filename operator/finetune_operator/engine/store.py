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
    ignored. So the answers to our own writes can be put here at once, and a pass reads what it wrote.

    Stored objects have no `managedFields` and must not be changed by readers.
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

    def __len__(self) -> int:
        return sum(len(objects) for objects in self._objects.values())

    def __iter__(self) -> Iterator[Manifest]:
        for objects in list(self._objects.values()):
            yield from list(objects.values())

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

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
        old = self.get(namespace, name)
        known = max(self._deleted.get(metadata["uid"], 0), version(old) if old is not None else 0)
        if version(obj) <= known:
            return False
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
            if obj["metadata"]["uid"] not in uids and version(obj) <= listed_at:
                gone += self.remove(obj, at=listed_at)
        return gone

    def _bury(self, obj: Manifest, at: int) -> None:
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
