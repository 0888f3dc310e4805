# SPDX-License-Identifier: Apache-2.0
"""Read a complete list into a store, page by page, so that at most one unprocessed page is in memory."""

import asyncio
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest

RELIST_SECONDS: Final = 600
"""Seconds between two lists of a type, which find changes that the watch missed."""


BATCH_SIZE: Final = 10
"""Number of objects after which the list yields to the event loop: a few milliseconds of work."""


class Listed(NamedTuple):
    """Result of a list."""

    resource_version: str
    """Resource version of the list."""
    missed: int
    """Number of changes that the store did not know before the list."""


async def take_list(
    cluster: KubernetesClient,
    store: ObjectStore,
    type_: ResourceType,
    namespace: str = "",
    selector: str = "",
) -> Listed:
    """Make the store equal to the objects that exist.

    A list from a restored etcd begins a new epoch of the store.

    Args:
        cluster: client of the API server.
        store: store of this type; it has only objects that match the selector.
        type_: type of the objects.
        namespace: namespace to list; empty: all.
        selector: label selector.

    Raises:
        ApiError: the list is incomplete. The store keeps the pages that were read.
    """
    uids: set[str] = set()
    missed, resource_version, seen_before = 0, "", store.newest
    async for page, listed_at in cluster.pages(type_, namespace, selector):
        resource_version = listed_at
        if _is_of_another_epoch(store, page, int(listed_at), seen_before):
            store.begin_epoch()
            seen_before = 0
        store.note_version(int(listed_at))
        for number, obj in enumerate(page, 1):
            uids.add(obj["metadata"]["uid"])
            missed += store.put(obj)
            if number % BATCH_SIZE == 0:
                # Parsing, indexing and packing a whole page would hold up the rest of the process.
                await asyncio.sleep(0)
    return Listed(resource_version, missed + store.prune(uids, resource_version, namespace))


def _is_of_another_epoch(store: ObjectStore, page: list[Manifest], listed_at: int, seen_before: int) -> bool:
    """Whether etcd was restored from a snapshot since `seen_before`, the newest version before the list.

    Without a restore, no list is older than what was seen before it. After a restore a list is older, until
    as many versions have been written as were lost. From then on, single objects are older than before.
    """
    return listed_at < seen_before or any(store.is_older_than_known(obj, listed_at) for obj in page)
