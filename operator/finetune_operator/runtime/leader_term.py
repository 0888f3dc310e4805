# SPDX-License-Identifier: Apache-2.0
"""Terms as the active process, which holds the Lease: when one begins and ends, and its work.

The work is the passes for the keys of the queue, and tasks in parallel with them. A process may be frozen at
any time. The fence (`Lease.check`) ensures that it then sends no late write.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final

from finetune_operator.api.labels import OPERATOR, STAGE
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError
from finetune_operator.engine.executor import EventRecorder, Executor, Stamp
from finetune_operator.engine.lease import Installations, LeaseThread
from finetune_operator.engine.queue import ReconcileWorkers, WorkQueue
from finetune_operator.engine.watches import Watches
from finetune_operator.manifests.pod_security import AccountSettings
from finetune_operator.metrics.process_metrics import OperatorMetrics, SeriesRetention
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.report.progress_cache import ProgressCache
from finetune_operator.report.server import ReportEndpoint
from finetune_operator.runtime.caches import KIND_TYPES, Caches
from finetune_operator.runtime.controller import Controller
from finetune_operator.runtime.kind_watch import KindFeed
from finetune_operator.runtime.lookups import Lookups
from finetune_operator.runtime.settings import Settings
from finetune_operator.runtime.snapshots import SnapshotReader
from finetune_operator.runtime.triggers import Resync, is_at_rest
from finetune_operator.stage_table import find_row

logger = logging.getLogger(__name__)

FINISH_SECONDS: Final = 15.0
"""Time that running passes may take when the process stops. A pod has 30 seconds."""


class Leadership:
    """Runs the workers while this process holds the Lease, and waits for the Lease otherwise.

    Args:
        lease: Lease of the active process.
        installations: other installations. The Lease is not acquired while one is active in the same
            namespaces.
        queue: work queue; open during terms only.
        workers: workers of the queue.
        prepare: awaited at the beginning of each term, before the first pass.
        upkeep: runs in parallel with the passes of each term, and queues the first keys. It never returns.
    """

    def __init__(
        self,
        lease: LeaseThread,
        installations: Installations,
        queue: WorkQueue[Key],
        workers: ReconcileWorkers,
        *,
        prepare: Callable[[], Awaitable[None]],
        upkeep: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._lease = lease
        self._installations = installations
        self._queue = queue
        self._workers = workers
        self._prepare = prepare
        self._upkeep = upkeep

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set. Then finish the running passes and release the Lease."""
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                acquire = asyncio.create_task(self._acquire())
                await asyncio.wait({acquire, stop}, return_when=asyncio.FIRST_COMPLETED)
                if acquire.done():
                    acquire.result()
                    await self._term(stop)
                else:
                    await _cancel(acquire)
        finally:
            stop.cancel()

    async def _acquire(self) -> None:
        await self._installations.wait_until_alone()
        await self._lease.acquire()

    async def _term(self, stop: asyncio.Task[Any]) -> None:
        self._queue.reopen()
        keep = asyncio.create_task(self._lease.keep())
        work = asyncio.create_task(self._work())
        give_way = asyncio.create_task(self._installations.wait_until_preceded())
        await asyncio.wait({keep, work, give_way, stop}, return_when=asyncio.FIRST_COMPLETED)
        self._queue.close()
        await _cancel(give_way)
        if not keep.done():
            await asyncio.wait({keep, work}, timeout=FINISH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        try:
            await _cancel(work)
        finally:
            await _cancel(keep)
            await self._lease.release()

    async def _work(self) -> None:
        if await self._installations.is_preceded():
            # Another installation started at the same time, so this term ends.
            return
        await self._prepare()
        async with asyncio.TaskGroup() as group:
            upkeep = group.create_task(self._upkeep())
            await self._workers.run()
            upkeep.cancel()


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel the task; if it failed before, raise its exception."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class FirstLists:
    """Which objects are reconciled before the lists at the beginning of a term are complete.

    These are live objects whose row `needs_no_lists`.
    """

    def __init__(self, caches: Caches) -> None:
        self._kinds = caches.kinds
        self.are_complete = False

    def allow(self, key: Key) -> bool:
        """Whether the object may be reconciled."""
        return self.are_complete or self._needs_no_list(key)

    def _needs_no_list(self, key: Key) -> bool:
        store = self._kinds[key.kind]
        # A settled run has ended. It is not unpacked here.
        obj = None if store.is_settled(key.namespace, key.name) else store.get(key.namespace, key.name)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            return False
        return KIND_ROWS[key.kind].needs_no_lists(obj)


class Term:
    """The work of every term of a process.

    Attributes:
        workers: workers of the queue.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        cluster: KubernetesClient,
        caches: Caches,
        reader: SnapshotReader,
        watches: Watches,
        feed: KindFeed,
        queue: WorkQueue[Key],
        first_lists: FirstLists,
        board: ProgressCache,
        endpoint: ReportEndpoint,
        metrics: OperatorMetrics,
        stamp: Stamp,
    ) -> None:
        self._settings = settings
        self._caches = caches
        self._watches = watches
        self._feed = feed
        self._queue = queue
        self._first_lists = first_lists
        self._endpoint = endpoint
        self._nonce_key = secrets.token_hex(32)
        self._lookups = Lookups(cluster)
        events = EventRecorder(cluster, OPERATOR, settings.pod_name)
        self._executor = Executor(
            cluster, caches.by_type, events, stamp, confirm_absent_before_create=_must_be_confirmed_absent
        )
        controller = Controller(
            caches=caches,
            reader=reader,
            executor=self._executor,
            events=events,
            lookups=self._lookups,
            board=board,
            metrics=metrics,
            facts=self._facts,
        )
        self.workers = ReconcileWorkers(
            queue,
            controller.reconcile,
            settings.workers,
            lambda key, seconds, result: metrics.reconciled(key.kind, seconds, result),
        )
        self._resync = Resync(queue, self._keys, self._is_at_rest, settings.relist_seconds)
        self._retention = SeriesRetention(metrics, caches.keys, settings.relist_seconds)

    async def prepare(self) -> None:
        """Prepare a term, before its first pass."""
        self._first_lists.are_complete = False
        with contextlib.suppress(ApiError):
            await self._executor.begin_term(
                KIND_TYPES.values(), next(iter(self._settings.watch_namespaces), "")
            )
        await self._endpoint.publish_soon()

    async def upkeep(self) -> None:
        """Run the tasks in parallel with the passes. Never returns."""
        await asyncio.gather(
            self._complete_first_lists(),
            self._endpoint.keep(),
            self._resync.run(),
            self._lookups.keep_polling(self._queue.add),
            self._retention.run(),
        )

    async def _complete_first_lists(self) -> None:
        for kind, row in KIND_ROWS.items():
            for sweeper in self._feed.sweepers[kind] if row.is_listed_first else ():
                await sweeper.catch_up()
        self._first_lists.are_complete = True
        self._queue.start_postponed()

    def _keys(self) -> Iterator[Key]:
        return (key for key in self._caches.keys() if self._watches.complete(key.namespace))  # noqa: SIM118

    def _is_at_rest(self, key: Key) -> bool:
        store = self._caches.kinds[key.kind]
        if store.is_settled(key.namespace, key.name):
            return True
        obj = store.get(key.namespace, key.name)
        return obj is not None and is_at_rest(obj)

    def _facts(self) -> OperatorFacts:
        return OperatorFacts(
            namespace=self._settings.pod_namespace,
            trainer_image=self._settings.trainer_image,
            image_pull_policy=self._settings.image_pull_policy,
            accounts=AccountSettings(
                self._settings.runner_annotations, self._settings.runner_image_pull_secrets
            ),
            report=self._endpoint.target,
            trainer_image_floor=self._settings.trainer_image_floor,
            monitoring_namespace=self._settings.monitoring_labels,
            nonce_key=self._nonce_key,
            unlisted=self._watches.left_out,
        )


def _must_be_confirmed_absent(manifest: Manifest) -> bool:
    """Whether the row of the manifest's stage requires a GET before the operator creates it."""
    row = find_row(manifest["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.confirm_absent
