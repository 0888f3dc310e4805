# SPDX-License-Identifier: Apache-2.0
"""Workers: take a key, reconcile it, and decide by the error when to retry."""

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
"""Longer back-off for errors that only a user or administrator can fix."""

Reconcile = Callable[[Key], Awaitable[float | None]]
"""Executes one pass for one object; returns the seconds until the next one, or None."""
Observe = Callable[[Key, float, str], None]
"""Called after every pass with its key, seconds and result."""


class ReconcileWorkers:
    """`count` workers for one queue."""

    def __init__(self, queue: WorkQueue[Key], reconcile: Reconcile, count: int, observe: Observe) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._count = count
        self._observe = observe

    async def run(self) -> None:
        """Work until the queue is closed, and finish running passes. Cancel to stop within a pass."""
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
            # A pass without changes never awaits I/O. Without this, one worker would execute all such passes
            # in a row, and nothing else would run in the meantime.
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
            logger.debug("%s: %s; reconciling again", _name(key), error)
            self._queue.retry(key)
        except Unavailable as error:
            result = "unavailable"
            delay = self._queue.retry(key, min_seconds=error.retry_after_seconds or 0.0)
            logger.warning("%s: %s; next try in %.1f s", _name(key), error, delay)
        except (Rejected, NameConflict) as error:
            result = "rejected"
            delay = self._retry_rarely(key)
            logger.warning("%s: %s; next try in %.0f s", _name(key), error, delay)
        except Exception:
            # A bug affects one object; the other objects are still reconciled.
            result = "error"
            delay = self._retry_rarely(key)
            logger.exception("%s: the pass failed with a bug; next try in %.0f s", _name(key), delay)
        else:
            self._queue.forget(key)
            if again is not None:
                self._queue.add(key, again)
        self._observe(key, time.perf_counter() - started, result)

    def _retry_rarely(self, key: Key) -> float:
        return self._queue.retry(
            key, first_seconds=FIRST_REJECTED_RETRY_SECONDS, max_seconds=MAX_REJECTED_RETRY_SECONDS
        )


def _name(key: Key) -> str:
    return f"{key.kind} {key.namespace}/{key.name}" if key.namespace else f"{key.kind} {key.name}"
