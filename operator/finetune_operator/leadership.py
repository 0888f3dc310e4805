"""Terms of being the active process: work while the Lease is held, and not a moment longer."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

from finetune_operator.engine.lease import Lease
from finetune_operator.engine.queue import WorkQueue
from finetune_operator.engine.worker import Workers
from finetune_operator.plan import Key

logger = logging.getLogger(__name__)

FINISH_SECONDS: Final = 15.0
"""How long passes under way may take when the process stops; a pod has thirty seconds."""


class Leadership:
    """Works the queue while this process holds the Lease, and waits for the Lease otherwise.

    Args:
        lease: the right to work.
        queue: of keys; filled by the caches all the time.
        workers: of the queue.
        keys: all objects there are; each is looked at when a term begins.
        prepare: done at the beginning of each term, before the first pass.
        upkeep: runs beside the passes of each term; never ends by itself.
    """

    def __init__(
        self,
        lease: Lease,
        queue: WorkQueue[Key],
        workers: Workers,
        *,
        keys: Callable[[], Iterable[Key]],
        prepare: Callable[[], Awaitable[None]],
        upkeep: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._lease = lease
        self._queue = queue
        self._workers = workers
        self._keys = keys
        self._prepare = prepare
        self._upkeep = upkeep

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set; the passes under way are finished and the Lease is released then."""
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                acquire = asyncio.create_task(self._lease.acquire())
                await asyncio.wait({acquire, stop}, return_when=asyncio.FIRST_COMPLETED)
                if acquire.done():
                    acquire.result()
                    await self._term(stop)
                else:
                    await _cancelled(acquire)
        finally:
            stop.cancel()

    async def _term(self, stop: asyncio.Task[Any]) -> None:
        keep = asyncio.create_task(self._lease.keep())
        work = asyncio.create_task(self._work())
        await asyncio.wait({keep, work, stop}, return_when=asyncio.FIRST_COMPLETED)
        self._queue.close()
        if not keep.done():
            await asyncio.wait({keep, work}, timeout=FINISH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        try:
            await _cancelled(work)
        finally:
            await _cancelled(keep)
            await self._lease.release()

    async def _work(self) -> None:
        self._queue.reopen()
        await self._prepare()
        for key in self._keys():
            self._queue.add(key)
        upkeep = asyncio.create_task(self._upkeep())
        try:
            await self._workers.run()
        finally:
            await _cancelled(upkeep)


async def _cancelled(task: asyncio.Task[None]) -> None:
    """End the task; what it failed with before is raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
