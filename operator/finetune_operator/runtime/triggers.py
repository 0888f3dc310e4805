# SPDX-License-Identifier: Apache-2.0
"""What queues a key: a change in the caches, and the resync.

A change queues the changed object, and the objects that depend on it. The resync queues all objects without
a change, at the beginning of a term and once per period.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.engine.queue import WorkQueue
from finetune_operator.engine.resources import POD
from finetune_operator.engine.watches import Watches
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.indexes import key_of
from finetune_operator.reconcile.platform.budgets import LAG
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.reconcile.scheduling import affected_by_champion, related
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.snapshots import SnapshotReader
from finetune_operator.status.reasons import ConditionType

logger = logging.getLogger(__name__)


COUNTED_AFTER_SECONDS: Final = LAG.total_seconds()
"""Seconds after which the begin or end of a pod wakes its ComputeProfile: it is not counted earlier, and each
such pass reads all pods of the profile."""
COUNTED: Final = (POD.kind, ComputeProfile.__name__)


class ChangeTriggers:
    """Queues keys when the caches change.

    Args:
        caches: caches to subscribe to.
        reader: finds related objects.
        watches: namespaces with incomplete first lists are skipped.
        queue: work queue.
        active: whether this process is active. An inactive process queues nothing, and a term begins with a
            resync.
    """

    def __init__(
        self,
        caches: Caches,
        reader: SnapshotReader,
        watches: Watches,
        queue: WorkQueue[Key],
        active: Callable[[], bool],
    ) -> None:
        self._caches = caches
        self._reader = reader
        self._watches = watches
        self._queue = queue
        self._active = active
        for kind, store in caches.kinds.items():
            store.subscribe(partial(self._kind_changed, kind))
        for type_, children in caches.children.items():
            children.subscribe(partial(self._queue_related, type_.kind))
        reader.subscribe_champions(self._champion_changed)
        watches.subscribe(self._namespace_complete)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Queue the object, unless its pass would miss objects that are not listed yet."""
        if self._watches.complete(key.namespace):
            self._queue.add(key, delay)

    def _namespace_complete(self, namespace: str) -> None:
        for kind, store in self._caches.kinds.items():
            for name in store.names(namespace):
                self.add(Key(kind, namespace, name))

    def _kind_changed(self, kind: str, old: Manifest | None, new: Manifest | None) -> None:
        changed = new or old
        if changed is not None:
            self.add(key_of(changed))
            self._queue_related(kind, old, new)

    def _champion_changed(self, namespace: str, model_line: str) -> None:
        if self._active():
            for key in affected_by_champion(namespace, model_line, self._reader):
                self.add(key)

    def _queue_related(self, kind: str, old: Manifest | None, new: Manifest | None) -> None:
        if not self._active():
            return
        try:
            for key in related(kind, old, new, self._reader):
                self.add(key, COUNTED_AFTER_SECONDS if (kind, key.kind) == COUNTED else 0.0)
        except Exception:
            # One malformed object must not end the watch of all objects.
            logger.exception("cannot find the objects that depend on a changed %s", kind)


BATCH_SIZE: Final = 500
"""Number of keys after which the first resync yields to the event loop."""
PORTIONS: Final = 600
"""Number of portions in which all keys are queued over a period."""


class Resync:
    """Queues the keys of all objects.

    The first resync handles everything that happened before this process became active. Later ones repair
    what a watch event of a related object should have triggered and did not. A resync writes nothing if all
    is well.

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
        for number, key in enumerate(_sort_related_together(at_rest), 1):
            self._queue.add_idle(key)
            if number % BATCH_SIZE == 0:
                await asyncio.sleep(0)
        while True:
            await asyncio.sleep(self._period_seconds / PORTIONS)
            await self._spread(_sort_related_together(self._keys()))

    async def _spread(self, keys: list[Key]) -> None:
        size = math.ceil(len(keys) / PORTIONS)
        portions = [keys[start : start + size] for start in range(0, len(keys), max(1, size))]
        for portion in portions or [[]]:
            for key in portion:
                self._queue.add_idle(key)
            await asyncio.sleep(self._period_seconds / max(1, len(portions)))


def _sort_related_together(keys: Iterable[Key]) -> list[Key]:
    """The keys by name. A Checkpoint is named after its run, which its pass reads: the run is parsed once."""
    return sorted(keys, key=lambda key: (key.namespace, key.name))


def is_at_rest(obj: Manifest) -> bool:
    """Whether a pass rarely changes it: a finished run, a prepared Dataset, or a record with conditions."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    conditions = status.get("conditions") or ()
    if "deletionTimestamp" in metadata or not conditions:
        return False
    if KIND_ROWS[obj["kind"]].is_record:
        return True
    ended = {ConditionType.READY, ConditionType.STALLED}
    current = status.get("observedGeneration") == metadata.get("generation")
    return current and any(each["type"] in ended and each["status"] == "True" for each in conditions)
