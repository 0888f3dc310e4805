"""Full lists from time to time, for the types that somebody else watches for us.

A watch library that lists again after a gap tells of no deletions in it, and a watch may freeze in silence.
A list finds both: it removes what is gone, and only where it finds nothing that the watch had missed does the
watch count as alive.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from finetune_operator.engine.cluster import Cluster
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.listing import take_list
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.watches import Watches

logger = logging.getLogger(__name__)

FIRST_RETRY = 2.0


@dataclass(frozen=True, slots=True)
class Swept:
    """A type with its store; cluster-scoped types and unrestricted processes list everything at once."""

    type: ResourceType
    store: ObjectStore
    namespaces: tuple[str, ...] = ("",)


class Sweeper:
    """Lists the types once at the start, and every `period` seconds from then on."""

    def __init__(self, cluster: Cluster, swept: Sequence[Swept], watches: Watches, period: float) -> None:
        self._cluster = cluster
        self._swept = swept
        self._watches = watches
        self._period = period
        for each in swept:
            watches.expect(each.type.plural)

    async def fill(self) -> None:
        """List every type for the first time, waiting until all are installed and may be listed."""
        async with asyncio.TaskGroup() as group:
            for each in self._swept:
                group.create_task(self._fill(each))

    async def _fill(self, swept: Swept) -> None:
        while True:
            try:
                await self._sweep(swept)
            except ApiError as error:
                logger.warning("%s; trying again", _explained(swept.type, error))
                await asyncio.sleep(FIRST_RETRY)
            else:
                return

    async def run(self) -> None:
        """Never ends by itself."""
        while True:
            await asyncio.sleep(self._period)
            for each in self._swept:
                try:
                    await self._sweep(each)
                except ApiError as error:
                    logger.warning("%s; trying again in %.0f s", _explained(each.type, error), self._period)

    async def _sweep(self, swept: Swept) -> None:
        missed = 0
        for namespace in swept.namespaces:
            missed += (await take_list(self._cluster, swept.store, swept.type, namespace)).missed
        if swept.type.plural in self._watches.waiting_for:
            self._watches.synced(swept.type.plural)
        elif missed == 0:
            self._watches.beat(swept.type.plural)
        else:
            logger.info("a list of %s found %d changes before the watch did", swept.type.plural, missed)


def _explained(type_: ResourceType, error: ApiError) -> str:
    if isinstance(error, Rejected) and error.code == HTTPStatus.NOT_FOUND:
        return f"{type_.plural} of {type_.api_version} are not installed: apply the CRDs of this release"
    return f"listing {type_.plural}: {error}"
