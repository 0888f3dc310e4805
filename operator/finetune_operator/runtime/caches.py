# SPDX-License-Identifier: Apache-2.0
"""The caches of the process: the operator's kinds and their children, with indexes."""

from collections.abc import Iterable, Iterator
from typing import Final

from finetune_operator.api.meta import GROUP, Resource
from finetune_operator.engine.cache_memory import MEBIBYTE, NamespaceBound
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import MAX_NAMESPACE_MEBIBYTES, Indexer, ObjectStore, Transform
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.indexes import address, namespace_of
from finetune_operator.reconcile.inputs.related_types import RELATED_TYPES, RelatedType, children_of
from finetune_operator.reconcile.registry import KIND_ROWS

KIND_TYPES: Final = {kind: row.type for kind, row in KIND_ROWS.items()}
"""Types of the operator's kinds."""

READ_PREFIXES: Final = (f"{GROUP}/", "app.kubernetes.io/", "batch.kubernetes.io/", "kueue.x-k8s.io/")
"""Begin of the labels and annotations that the operator reads or writes."""

BY_OWNER: Final = "owner"
"""Index of children, by the `address` of the uids in `Child.owners`. An owner is in the namespace of its
children: whoever may create objects in another namespace may give them any owner."""


class Caches:
    """One store per type: the operator's kinds, and the types of children in `related_types`.

    Attributes:
        bound: memory of the objects of each namespace, in all stores.
    """

    def __init__(
        self,
        secondaries: tuple[RelatedType, ...] = RELATED_TYPES,
        *,
        max_namespace_mebibytes: int = MAX_NAMESPACE_MEBIBYTES,
    ) -> None:
        self.bound = NamespaceBound(max_namespace_mebibytes * MEBIBYTE)
        self.kinds = {
            name: ObjectStore(
                row.indexers,
                drop_unread_marks(row.cached),
                row.compression,
                keep_managers=row.is_record,
                bound=self.bound,
            )
            for name, row in KIND_ROWS.items()
        }
        self.child_types = children_of(secondaries)
        self.children = {
            each.type: ObjectStore(
                {BY_OWNER: _qualify_owners(each.owners)}, drop_unread_marks(each.kept), bound=self.bound
            )
            for each in self.child_types
        }
        self.by_type = {KIND_ROWS[name].type: store for name, store in self.kinds.items()} | self.children
        self.by_kind = {type_.kind: store for type_, store in self.by_type.items()}

    def of(self, model: type[Resource]) -> ObjectStore:
        """The objects of one of the operator's kinds."""
        return self.kinds[model.__name__]

    def owned(self, type_: ResourceType, namespace: str, uid: str) -> Iterable[Manifest]:
        """Objects of this type of the namespace that an owner with this uid has, by `Child.owners`."""
        return self.children[type_].indexed(BY_OWNER, address(namespace, uid)).values()

    def keys(self) -> Iterator[Key]:
        """Keys of all objects of the operator's kinds."""
        for kind, store in self.kinds.items():
            for namespace, name in store.addresses():
                yield Key(kind, namespace, name)


def drop_unread_marks(kept: Transform) -> Transform:
    """The transform, and without the labels and annotations that nothing reads, which may have 256 KiB."""

    def transform(obj: Manifest) -> Manifest:
        metadata = dict(obj["metadata"])
        for marks in ("labels", "annotations"):
            if marks in metadata:
                metadata[marks] = {
                    key: value
                    for key, value in (metadata[marks] or {}).items()
                    if key.startswith(READ_PREFIXES)
                }
        return kept(obj | {"metadata": metadata})

    return transform


def _qualify_owners(owners: Indexer) -> Indexer:
    def addresses(obj: Manifest) -> Iterator[str]:
        return (address(namespace_of(obj), uid) for uid in owners(obj))

    return addresses
