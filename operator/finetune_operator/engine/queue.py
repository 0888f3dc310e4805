# SPDX-License-Identifier: Apache-2.0
"""Work queue: each key at most once, one worker per key and per lock, with fairness, delays and back-off.

It belongs to one event loop and is not thread-safe.
"""

import asyncio
import random
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from finetune_operator.engine.fairness import Lane, LockTable

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 60.0
EARLY_SECONDS: Final = 0.01
"""Time before the end of a delay at which it counts as over: a timer of the event loop can fire early."""
PARKED_BATCH_SIZE: Final = 500
"""Number of keys with a taken lock after which `get` yields to the event loop."""


class QueueClosed(Exception):
    """The queue is closed."""


class WorkQueue(Generic[K]):
    """Keys that wait for a worker.

    A key that is added while a worker has it is returned again after that worker is done with it, so that no
    two workers have it at the same time. Of several delays, the earliest wins.

    Args:
        share: share of a key, such as its namespace. Shares are served in rotation, so that many keys of one
            share delay those of another by one pass each.
        lock: lock that a key needs while a worker has it, or None; called when the key is next. A key whose
            lock is taken waits without a worker.
        may_start: whether a worker may have the key yet; called when the key is next. If not, the key waits
            without a worker until `start_postponed`.
    """

    def __init__(
        self,
        share: Callable[[K], Hashable] = lambda _: None,
        lock: Callable[[K], Hashable | None] = lambda _: None,
        may_start: Callable[[K], bool] = lambda _: True,
    ) -> None:
        self._share = share
        self._lock = lock
        self._may_start = may_start
        self._postponed: dict[K, None] = {}
        self._ready: Lane[K] = Lane()
        self._idle: Lane[K] = Lane()
        self._locks: LockTable[K] = LockTable()
        self._waiting: dict[K, Lane[K]] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._active: dict[K, float | None] = {}
        self._failures: dict[K, tuple[int, float]] = {}
        """Number of failures in a row, and when the wait after the last one ends."""
        self._available = asyncio.Event()
        self._closed = False

    @property
    def depth(self) -> int:
        """Number of keys that wait for a worker or for their lock."""
        return len(self._waiting)

    def add(self, key: K, delay: float = 0.0) -> None:
        """Make the key available in `delay` seconds, or earlier if it was already due earlier.

        A closed queue ignores it.
        """
        if self._closed:
            return
        due = asyncio.get_running_loop().time() + delay
        if key in self._active:
            already_due = self._active[key]
            self._active[key] = due if already_due is None else min(already_due, due)
        else:
            self._schedule(key, due)

    def add_idle(self, key: K) -> None:
        """Make the key available when no other key is ready, unless it already waits or has a worker."""
        if not (self._closed or key in self._active or key in self._waiting):
            self._push(key, self._idle)

    async def get(self) -> K:
        """Wait for the next key and return it. Call `done` with it afterwards.

        Raises:
            QueueClosed: the queue was closed.
        """
        while not self._closed:
            # Before the search, so that a key that becomes available during it is not missed.
            self._available.clear()
            for lane in (self._ready, self._idle):
                parked = 0
                while (key := lane.pop()) is not None:
                    if self._take(key):
                        return key
                    parked += 1
                    if parked % PARKED_BATCH_SIZE == 0:
                        await asyncio.sleep(0)
            await self._available.wait()
        raise QueueClosed

    def done(self, key: K) -> None:
        """Mark the key as done by its worker."""
        due = self._active.pop(key)
        self._call(self._locks.release(key))
        if due is not None and not self._closed:
            self._schedule(key, due)

    def retry(
        self,
        key: K,
        *,
        first_seconds: float = FIRST_RETRY_SECONDS,
        max_seconds: float = MAX_RETRY_SECONDS,
        min_seconds: float = 0.0,
    ) -> float:
        """Make the key available after twice the last delay, with jitter.

        A failure before the last delay is over, of a pass that a change caused, does not count: the delay
        ends when it would have ended. So it grows with the time since the first failure, not with the number
        of changes.

        Returns:
            The delay in seconds.
        """
        now = asyncio.get_running_loop().time()
        failures, ends_at = self._failures.get(key, (0, now))
        is_over = now + EARLY_SECONDS >= ends_at
        failures += is_over
        full: float = min(max_seconds, first_seconds * 2.0 ** min(failures - 1, 30))
        # Half of it at random, so that keys that failed together are not retried together.
        jittered = full * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        delay = max(min_seconds, jittered if is_over else min(full, ends_at - now))
        self._failures[key] = failures, now + delay
        self.add(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Reset the back-off of a key after a success."""
        self._failures.pop(key, None)

    def start_postponed(self) -> None:
        """Look again at the keys that no worker could have, in the order in which they were next."""
        postponed, self._postponed = self._postponed, {}
        for key in postponed:
            self._waiting[key].push(self._share(key), key)
        self._available.set()

    def close(self) -> None:
        """Drop all keys and accept no more; every waiting `get` raises QueueClosed."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()
        self._postponed.clear()
        self._ready.clear()
        self._idle.clear()
        self._locks.clear()
        self._failures.clear()
        self._available.set()

    def reopen(self) -> None:
        """Accept keys again after `close`."""
        self._closed = False

    def _take(self, key: K) -> bool:
        """Give the key to a worker. If it may not start or its lock is taken, return False; it then waits."""
        if not self._may_start(key):
            self._postponed[key] = None
            return False
        lock = self._lock(key)
        self._call(self._locks.skip(key, lock))
        if not self._locks.acquire(key, lock, urgent=self._waiting[key] is self._ready):
            return False
        del self._waiting[key]
        self._active[key] = None
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return True

    def _call(self, key: K | None) -> None:
        """Queue a key whose lock is free before the other keys of its share."""
        if key is not None:
            self._waiting[key].push(self._share(key), key, first=True)
            self._available.set()

    def _schedule(self, key: K, due: float) -> None:
        if self._waiting.get(key) is self._ready:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
            del self._timers[key]
        if due <= loop.time():
            self._promote(key)
        else:
            self._timers[key] = loop.call_at(due, self._promote, key)

    def _promote(self, key: K) -> None:
        self._timers.pop(key, None)
        if key not in self._waiting or self._idle.discard(self._share(key), key):
            self._push(key, self._ready)
        else:
            # It waits for its lock or for `start_postponed`.
            self._waiting[key] = self._ready
            self._locks.hurry(key)

    def _push(self, key: K, lane: Lane[K]) -> None:
        self._waiting[key] = lane
        lane.push(self._share(key), key)
        self._available.set()
