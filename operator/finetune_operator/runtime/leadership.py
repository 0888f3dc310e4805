# SPDX-License-Identifier: Apache-2.0
"""Terms as the active process: work only while this process holds the Lease.

A process may be frozen at any time. The fence (`Lease.check`) ensures that it then sends no late write.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from finetune_operator.engine.lease import Installations, LeaseThread
from finetune_operator.engine.queue import ReconcileWorkers, WorkQueue
from finetune_operator.plan import Key

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
                    await _cancelled(acquire)
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
        await _cancelled(give_way)
        if not keep.done():
            await asyncio.wait({keep, work}, timeout=FINISH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        try:
            await _cancelled(work)
        finally:
            await _cancelled(keep)
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


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel the task; if it failed before, raise its exception."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
