"""A complete list into a store, page by page: a page at most is in memory as the API server sends it."""

from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest

RELIST_SECONDS: Final = 600
"""Between two lists of a type, which make up for events that never came."""


class Listed(NamedTuple):
    """What a list said."""

    resource_version: str
    """What it is true for."""
    missed: int
    """How many changes the store had not known until now."""


async def take_list(
    cluster: KubernetesClient,
    store: ObjectStore,
    type_: ResourceType,
    namespace: str = "",
    selector: str = "",
) -> Listed:
    """Have the store hold what exists, and nothing that does not any more.

    A list from a restored etcd begins a new epoch of the store.

    Args:
        cluster: where to list.
        store: of this type, with nothing in it that the selector leaves out.
        type_: of the objects.
        namespace: empty for all.
        selector: by labels.

    Raises:
        ApiError: there is no complete list; what was read of it is kept.
    """
    uids: set[str] = set()
    missed, resource_version, seen_before = 0, "", store.newest
    async for page, listed_at in cluster.pages(type_, namespace, selector):
        resource_version = listed_at
        if _is_of_another_epoch(store, page, int(listed_at), seen_before):
            store.begin_epoch()
            seen_before = 0
        store.see(int(listed_at))
        for obj in page:
            uids.add(obj["metadata"]["uid"])
            missed += store.put(obj)
    return Listed(resource_version, missed + store.prune(uids, resource_version, namespace))


def _is_of_another_epoch(store: ObjectStore, page: list[Manifest], listed_at: int, seen_before: int) -> bool:
    """Whether etcd was restored from a snapshot since `seen_before`, the newest version before the list.

    A list is never older than what was seen before it. After a restore it is, until as much was written as
    was lost; then single objects still are older than they were.
    """
    return listed_at < seen_before or any(store.contradicts(obj, listed_at) for obj in page)
