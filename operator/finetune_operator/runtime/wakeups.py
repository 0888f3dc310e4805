# SPDX-License-Identifier: Apache-2.0
"""Queue keys after changes in the caches: of the changed object, and of the objects that depend on it."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from finetune_operator.engine.queue import WorkQueue
from finetune_operator.engine.watches import Watches
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.computeprofile.accounting import LAG
from finetune_operator.reconcile.scheduling.relations import affected_by_champion, related
from finetune_operator.runtime.caches import Caches, key_of
from finetune_operator.runtime.snapshotreader import SnapshotReader

logger = logging.getLogger(__name__)


COUNTED_AFTER_SECONDS: Final = LAG.total_seconds()
"""Seconds after which the begin or end of a pod wakes its ComputeProfile: it is not counted earlier, and each
such pass reads all pods of the profile."""


class Wakeups:
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
                self.add(key, COUNTED_AFTER_SECONDS if (kind, key.kind) == ("Pod", "ComputeProfile") else 0.0)
        except Exception:
            # One malformed object must not end the watch of all objects.
            logger.exception("cannot find the objects that depend on a changed %s", kind)
