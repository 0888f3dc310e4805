"""Full lists from time to time, for the types that somebody else watches for us.

A watch library that lists again after a gap tells of no deletions in it, and a watch may freeze in silence.
A list finds both: it removes what is gone, and only where it finds nothing that the watch had missed does the
watch count as alive.
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
        """List as soon as possible: there is reason to believe that the watch missed something."""
        self._requested.set()

    async def run(self) -> None:
        """Never ends by itself; until the type is installed and may be listed, it is tried again."""
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
        """Have the store hold what exists now, whatever the watch still has to tell.

        Tried again until it succeeds; a type that may not be listed now is left as it is.
        """
        while self._watches.is_known(self.name):
            try:
                await take_list(self._cluster, self._store, self._type, self._namespace)
            except ApiError as error:
                logger.warning("%s; needed before anything is decided", self._explained(error))
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
            logger.info("a list of %s found %d changes before the watch did", self.name, listed.missed)
            await self._try_watch(listed.resource_version)

    async def _try_watch(self, resource_version: str) -> None:
        """A watch that misses changes because it is refused is not frozen."""
        stream = self._cluster.watch(self._type, self._namespace, "", resource_version, seconds=TRY_SECONDS)
        try:
            async with contextlib.aclosing(stream):
                async for _ in stream:
                    return
        except Rejected as error:
            self._watches.refused(self.name, error)
            logger.warning("watching %s: %s", self.name, error)

    def _explained(self, error: ApiError) -> str:
        if isinstance(error, Rejected) and error.code == HTTPStatus.NOT_FOUND:
            version = self._type.api_version
            return f"{self._type.plural} of {version} are not installed: apply the CRDs of this release"
        return f"listing {self.name}: {error}"
