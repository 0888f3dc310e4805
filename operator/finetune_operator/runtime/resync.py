# SPDX-License-Identifier: Apache-2.0
"""Resync: reconcile all objects without a change, at the beginning of a term and once per period.

The first resync handles everything that happened before this process became active. Later ones repair what a
watch event of a related object should have triggered and did not. A resync writes nothing if all is well.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Final

from finetune_operator.engine.queue import WorkQueue
from finetune_operator.plan import Key, Manifest
from finetune_operator.status.reasons import ConditionType

BATCH_SIZE: Final = 500
"""Number of keys after which the first resync yields to the event loop."""
PORTIONS: Final = 600
"""Number of portions in which all keys are queued over a period."""
RECORDS: Final = frozenset({"Checkpoint", "DatasetVersion"})


class Resync:
    """Queues the keys of all objects.

    Args:
        queue: work queue. Objects at rest come after all other keys.
        keys: returns the keys of all objects.
        at_rest: whether a pass for the object is unlikely to change anything.
        period_seconds: seconds within which each object is reconciled once.
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
        """Queue all keys, then continue in portions. Never returns."""
        at_rest = []
        for number, key in enumerate(self._keys(), 1):
            if self._at_rest(key):
                at_rest.append(key)
            else:
                self._queue.add(key)
            if number % BATCH_SIZE == 0:
                await asyncio.sleep(0)
        for number, key in enumerate(_related_together(at_rest), 1):
            self._queue.add_idle(key)
            if number % BATCH_SIZE == 0:
                await asyncio.sleep(0)
        while True:
            await asyncio.sleep(self._period_seconds / PORTIONS)
            await self._spread(_related_together(self._keys()))

    async def _spread(self, keys: list[Key]) -> None:
        size = math.ceil(len(keys) / PORTIONS)
        portions = [keys[start : start + size] for start in range(0, len(keys), max(1, size))]
        for portion in portions or [[]]:
            for key in portion:
                self._queue.add_idle(key)
            await asyncio.sleep(self._period_seconds / max(1, len(portions)))


def _related_together(keys: Iterable[Key]) -> list[Key]:
    """The keys by name. A Checkpoint is named after its run, which its pass reads: the run is parsed once."""
    return sorted(keys, key=lambda key: (key.namespace, key.name))


def is_at_rest(obj: Manifest) -> bool:
    """Whether a pass rarely changes it: a finished run, a prepared Dataset, or a record with conditions."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    conditions = status.get("conditions") or ()
    if "deletionTimestamp" in metadata or not conditions:
        return False
    if obj["kind"] in RECORDS:
        return True
    ended = {ConditionType.READY, ConditionType.STALLED}
    current = status.get("observedGeneration") == metadata.get("generation")
    return current and any(each["type"] in ended and each["status"] == "True" for each in conditions)
