# SPDX-License-Identifier: Apache-2.0
"""Keep the store of one type current: list, watch for a while, list again."""

import asyncio
import contextlib
import logging
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.listing import RELIST_SECONDS, take_list
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.watches import Watches, watch_name
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

RECONNECT_SECONDS: Final = 0.1
MAX_WAIT_SECONDS: Final = 30.0


class Reflector:
    """Reflector of one type in one namespace (or all), restricted by a label selector."""

    def __init__(
        self,
        cluster: KubernetesClient,
        type_: ResourceType,
        store: ObjectStore,
        watches: Watches,
        *,
        namespace: str = "",
        selector: str = "",
        relist_seconds: int = RELIST_SECONDS,
    ) -> None:
        self.name = watch_name(type_.plural, namespace)
        self._cluster = cluster
        self._type = type_
        self._store = store
        self._watches = watches
        self._namespace = namespace
        self._selector = selector
        self._relist_seconds = relist_seconds
        self._resource_version = ""
        """Resource version of the last list or event; empty: a list is needed."""
        self._is_broken = False
        """Whether a watch after this list has broken."""
        watches.expect(self.name)

    async def run(self) -> None:
        """Run until cancelled. After every error of the API server, wait and try again."""
        clock = asyncio.get_running_loop().time
        wait = RECONNECT_SECONDS
        while True:
            began = clock()
            try:
                if not self._resource_version:
                    await self._list()
                await self._watch()
                # A list finds changes that the watch missed.
                self._resource_version = ""
                wait = RECONNECT_SECONDS
            except ApiError as error:
                if isinstance(error, Rejected):
                    # Usually 410: the API server has dropped the history since this version.
                    self._resource_version = ""
                    self._watches.refused(self.name, error)
                if clock() - began > MAX_WAIT_SECONDS:
                    wait = RECONNECT_SECONDS
                logger.warning("cannot watch %s: %s; next try in %.1f s", self.name, error, wait)
                await asyncio.sleep(wait)
                wait = min(MAX_WAIT_SECONDS, wait * 2)

    async def _list(self) -> None:
        listed = await take_list(self._cluster, self._store, self._type, self._namespace, self._selector)
        self._resource_version = listed.resource_version
        self._is_broken = False
        self._watches.synced(self.name)

    async def _watch(self) -> None:
        """Watch from the newest version until the server ends the stream.

        Raises:
            Rejected: a list is needed first.
        """
        if self._is_broken and await self._is_restored():
            # An API server with a restored etcd sends no events before it reaches the requested version.
            return
        self._is_broken = True
        stream = self._cluster.watch(
            self._type, self._namespace, self._selector, self._resource_version, seconds=self._relist_seconds
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._watches.beat(self.name)
                obj = event["object"]
                if event["type"] == "ERROR":
                    raise Rejected(obj.get("code", 0), obj.get("reason", ""), obj.get("message", ""))
                self._take(event["type"], obj)
                self._resource_version = obj["metadata"]["resourceVersion"]
                self._store.note_version(int(self._resource_version))
        await asyncio.sleep(RECONNECT_SECONDS)

    async def _is_restored(self) -> bool:
        """Whether the API server has only older versions, because its etcd was restored."""
        newest = await self._cluster.newest(self._type, self._namespace)
        return newest < int(self._resource_version)

    def _take(self, event: str, obj: Manifest) -> None:
        if event in {"ADDED", "MODIFIED"}:
            self._store.put(obj)
        elif event == "DELETED":
            # Also sent for an object whose labels do not match the selector any more.
            self._store.remove(obj)
