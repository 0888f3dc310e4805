# SPDX-License-Identifier: Apache-2.0
"""Periodic full lists of the types that Kopf watches.

Kopf lists again after a gap, but reports no deletions in it, and a watch may freeze without an error. A list
finds both. It removes what is gone, and the watch counts as alive only if the list finds no missed change.
"""

import asyncio
import contextlib
import logging
from http import HTTPStatus
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.listing import take_list
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.watches import Watches, watch_name

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS: Final = 2.0
MAX_RETRY_SECONDS: Final = 30.0
TRY_SECONDS: Final = 1


class Sweeper:
    """Lists one type, in one namespace (or all): at the start, every `period_seconds`, and on request."""

    def __init__(
        self,
        cluster: KubernetesClient,
        type_: ResourceType,
        store: ObjectStore,
        watches: Watches,
        *,
        namespace: str = "",
        period_seconds: float,
    ) -> None:
        self.name = watch_name(type_.plural, namespace)
        self._cluster = cluster
        self._type = type_
        self._store = store
        self._watches = watches
        self._namespace = namespace
        self._period_seconds = period_seconds
        self._requested = asyncio.Event()
        watches.expect(self.name)

    def request(self) -> None:
        """List as soon as possible, because the watch may have missed a change."""
        self._requested.set()

    async def run(self) -> None:
        """Run until cancelled. While the type is not installed or may not be listed, try again."""
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._sweep()
            except ApiError as error:
                if isinstance(error, Rejected):
                    self._watches.refused(self.name, error)
                logger.warning("%s; next try in %.0f s", self._explained(error), wait)
                await asyncio.sleep(wait)
                wait = min(MAX_RETRY_SECONDS, wait * 2)
            else:
                wait = FIRST_RETRY_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._requested.wait(), self._period_seconds)

    async def catch_up(self) -> None:
        """Make the store equal to the objects that exist now, without waiting for the watch.

        It retries until it succeeds, except if the type may not be listed.
        """
        while self._watches.is_known(self.name):
            try:
                await take_list(self._cluster, self._store, self._type, self._namespace)
            except ApiError as error:
                logger.warning("%s; the first pass waits for this list", self._explained(error))
                if isinstance(error, Rejected) and error.code != HTTPStatus.GONE:
                    return
                await asyncio.sleep(FIRST_RETRY_SECONDS)
            else:
                return

    async def _sweep(self) -> None:
        self._requested.clear()
        listed = await take_list(self._cluster, self._store, self._type, self._namespace)
        if listed.missed == 0 or not self._watches.is_known(self.name):
            self._watches.synced(self.name)
        else:
            logger.info("a list of %s found %d changes before the watch", self.name, listed.missed)
            await self._try_watch(listed.resource_version)

    async def _try_watch(self, resource_version: str) -> None:
        """Open a watch for a moment: if it is refused, the watch that missed changes is not frozen."""
        stream = self._cluster.watch(self._type, self._namespace, "", resource_version, seconds=TRY_SECONDS)
        try:
            async with contextlib.aclosing(stream):
                async for _ in stream:
                    return
        except Rejected as error:
            self._watches.refused(self.name, error)
            logger.warning("cannot watch %s: %s", self.name, error)

    def _explained(self, error: ApiError) -> str:
        if isinstance(error, Rejected) and error.code == HTTPStatus.NOT_FOUND:
            version = self._type.api_version
            return f"{self._type.plural} of {version} are not installed: apply the CRDs of this release"
        return f"cannot list {self.name}: {error}"
