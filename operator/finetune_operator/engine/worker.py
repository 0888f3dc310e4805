"""Workers: take a key, look at it, and decide by the error when to look again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from finetune_operator.engine.errors import Conflict, Gone, NameConflict, Rejected, Unavailable
from finetune_operator.engine.queue import QueueClosed, WorkQueue
from finetune_operator.plan import Key

logger = logging.getLogger(__name__)

FIRST_REJECTED_RETRY_SECONDS: Final = 5.0
MAX_REJECTED_RETRY_SECONDS: Final = 300.0
"""What only a person can mend is tried rarely."""

Reconcile = Callable[[Key], Awaitable[float | None]]
"""One pass over one object: seconds until another is due, or None."""
Observe = Callable[[Key, float, str], None]
"""Told key, seconds and result of every pass."""


class ReconcileWorkers:
    """`count` workers on one queue."""

    def __init__(self, queue: WorkQueue[Key], reconcile: Reconcile, count: int, observe: Observe) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._count = count
        self._observe = observe

    async def run(self) -> None:
        """Work until the queue is closed, finishing the passes under way; cancel to stop in mid-pass."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._work(), name=f"worker-{number}")

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except QueueClosed:
                return
            try:
                await self._pass(key)
            finally:
                self._queue.done(key)
            # A pass with nothing to do never waits for anything: without this, one worker would work off
            # all of such passes in one go, and nothing else would run meanwhile.
            await asyncio.sleep(0)

    async def _pass(self, key: Key) -> None:
        started = time.perf_counter()
        result = "ok"
        try:
            again = await self._reconcile(key)
        except Gone:
            result = "gone"
            self._queue.forget(key)
        except Conflict as error:
            result = "conflict"
            logger.debug("%s: %s; looking again", _name(key), error)
            self._queue.retry(key)
        except Unavailable as error:
            result = "unavailable"
            delay = self._queue.retry(key, at_least=error.retry_after or 0.0)
            logger.warning("%s: %s; next try in %.1f s", _name(key), error, delay)
        except (Rejected, NameConflict) as error:
            result = "rejected"
            delay = self._retry_rarely(key)
            logger.warning("%s: %s; next try in %.0f s", _name(key), error, delay)
        except Exception:
            # A bug shows itself on one object; the others go on.
            result = "error"
            delay = self._retry_rarely(key)
            logger.exception("%s: this pass failed by a bug; next try in %.0f s", _name(key), delay)
        else:
            self._queue.forget(key)
            if again is not None:
                self._queue.add(key, again)
        self._observe(key, time.perf_counter() - started, result)

    def _retry_rarely(self, key: Key) -> float:
        return self._queue.retry(key, first=FIRST_REJECTED_RETRY_SECONDS, longest=MAX_REJECTED_RETRY_SECONDS)


def _name(key: Key) -> str:
    return f"{key.kind} {key.namespace}/{key.name}" if key.namespace else f"{key.kind} {key.name}"
