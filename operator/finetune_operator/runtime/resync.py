"""Looks at all objects although nothing has changed: when a term begins, and again in each period.

The first makes up for everything that happened before this process was the active one. The others make up for
what a watch event of another object should have led to and did not, so that it need not wait for a restart.
Neither writes anything where all is well.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Final

from finetune_operator.engine.queue import WorkQueue
from finetune_operator.plan import Key, Manifest
from finetune_operator.status.reasons import ConditionType

BATCH_SIZE: Final = 500
"""Objects that are queued before the rest of the process has its turn."""
PORTIONS: Final = 600
"""Portions in which all objects are queued in the course of a period."""
RECORDS: Final = frozenset({"Checkpoint", "DatasetVersion"})


class Resync:
    """Queues all objects.

    Args:
        queue: where to; what is at rest comes after everything else.
        keys: of all objects.
        at_rest: whether nothing is likely to be due for the object.
        period_seconds: seconds in which each is looked at once.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        keys: Callable[[], Iterable[Key]],
        at_rest: Callable[[Key], bool],
        period_seconds: float,
    ) -> None:
        self._queue = queue
        self._keys = keys
        self._at_rest = at_rest
        self._period_seconds = period_seconds

    async def run(self) -> None:
        """Queue everything, and from then on a portion at a time; never ends by itself."""
        for number, key in enumerate(self._keys(), 1):
            if self._at_rest(key):
                self._queue.add_idle(key)
            else:
                self._queue.add(key)
            if number % BATCH_SIZE == 0:
                await asyncio.sleep(0)
        while True:
            await asyncio.sleep(self._period_seconds / PORTIONS)
            await self._spread(list(self._keys()))

    async def _spread(self, keys: list[Key]) -> None:
        size = math.ceil(len(keys) / PORTIONS)
        portions = [keys[start : start + size] for start in range(0, len(keys), max(1, size))]
        for portion in portions or [[]]:
            for key in portion:
                self._queue.add_idle(key)
            await asyncio.sleep(self._period_seconds / max(1, len(portions)))


def is_at_rest(obj: Manifest) -> bool:
    """Whether nothing is likely to be due: an ended run, a prepared Dataset, a record with a verdict."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    conditions = status.get("conditions") or ()
    if "deletionTimestamp" in metadata or not conditions:
        return False
    if obj["kind"] in RECORDS:
        return True
    ended = {ConditionType.READY, ConditionType.STALLED}
    current = status.get("observedGeneration") == metadata.get("generation")
    return current and any(each["type"] in ended and each["status"] == "True" for each in conditions)
