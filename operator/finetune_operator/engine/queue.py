# SPDX-License-Identifier: Apache-2.0
"""Work queue: each key at most once, one worker per key and per lock, with fairness, delays and back-off.

Shares of keys, such as namespaces, are served in rotation. Workers take a key, reconcile it, and decide by
the error when to retry. The queue belongs to one event loop and is not thread-safe.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from finetune_operator.engine.errors import Conflict, Gone, NameConflict, Rejected, Unavailable
from finetune_operator.plan import Key

K = TypeVar("K", bound=Hashable)


class FairQueue(Generic[K]):
    """A first-in-first-out queue per share. `pop` takes from one share after the other.

    Every operation is O(1) in the number of keys and shares.
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[Hashable, OrderedDict[K, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, share: Hashable, key: K, *, first: bool = False) -> None:
        """Add a key that is not in the lane. `first` puts it before the other keys of its share."""
        keys = self._shares.setdefault(share, OrderedDict())
        keys[key] = None
        if first:
            keys.move_to_end(key, last=False)
        self._length += 1

    def pop(self) -> K | None:
        """Remove and return the first key of the next share, or None if the lane is empty."""
        if not self._shares:
            return None
        share, keys = next(iter(self._shares.items()))
        key, _ = keys.popitem(last=False)
        self._length -= 1
        if keys:
            self._shares.move_to_end(share)
        else:
            del self._shares[share]
        return key

    def discard(self, share: Hashable, key: K) -> bool:
        """Remove a key; False if the lane does not contain it."""
        keys = self._shares.get(share)
        if keys is None or key not in keys:
            return False
        del keys[key]
        self._length -= 1
        if not keys:
            del self._shares[share]
        return True

    def clear(self) -> None:
        self._shares.clear()
        self._length = 0


class LockTable(Generic[K]):
    """Locks for keys that must not be worked on at the same time.

    Keys get a lock in order of their requests, urgent keys first. No method blocks: a key that
    waits for its lock occupies no worker. Every operation is O(1).
    """

    def __init__(self) -> None:
        self._holders: dict[Hashable, K] = {}
        self._locks: dict[K, Hashable] = {}
        self._parked: dict[K, Hashable] = {}
        self._urgent: dict[Hashable, OrderedDict[K, None]] = {}
        self._others: dict[Hashable, OrderedDict[K, None]] = {}
        self._called: dict[K, Hashable] = {}
        """Keys that were returned as the next holder and have not yet taken the lock."""

    def acquire(self, key: K, lock: Hashable | None, *, urgent: bool = True) -> bool:
        """Take the lock. If it is held, return False; the key waits until `release` or `skip` returns it."""
        if lock is None:
            return True
        if lock in self._holders:
            waiting = (self._urgent if urgent else self._others).setdefault(lock, OrderedDict())
            waiting[key] = None
            self._parked[key] = lock
            if self._called.pop(key, None) == lock:
                # It was next, but another key took the lock first: it stays first in line.
                waiting.move_to_end(key, last=False)
            return False
        self._holders[lock] = key
        self._locks[key] = lock
        return True

    def hurry(self, key: K) -> None:
        """Make a waiting key urgent."""
        lock = self._parked.get(key)
        if lock is not None and self._take(self._others, lock, key):
            self._urgent.setdefault(lock, OrderedDict())[key] = None

    def skip(self, key: K, lock: Hashable | None) -> K | None:
        """Return the next key for the lock that this key was returned for, if this key now needs another."""
        called = self._called.get(key)
        if called is None or called == lock:
            return None
        del self._called[key]
        return self._next(called)

    def release(self, key: K) -> K | None:
        """Release the lock of a finished key, and return the next key that waits for it, if any."""
        self._called.pop(key, None)
        lock = self._locks.pop(key, None)
        if lock is None:
            return None
        del self._holders[lock]
        return self._next(lock)

    def clear(self) -> None:
        """Forget the waiting keys. Held locks stay held."""
        self._urgent.clear()
        self._others.clear()
        self._parked.clear()
        self._called.clear()

    def _next(self, lock: Hashable) -> K | None:
        if lock in self._holders:
            return None
        for waiting in (self._urgent, self._others):
            if lock in waiting:
                key = next(iter(waiting[lock]))
                self._take(waiting, lock, key)
                del self._parked[key]
                self._called[key] = lock
                return key
        return None

    @staticmethod
    def _take(waiting: dict[Hashable, OrderedDict[K, None]], lock: Hashable, key: K) -> bool:
        """Remove a key from the waiting keys of a lock; False if it does not wait for it."""
        keys = waiting.get(lock)
        if keys is None or key not in keys:
            return False
        del keys[key]
        if not keys:
            del waiting[lock]
        return True


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
        self._ready: FairQueue[K] = FairQueue()
        self._idle: FairQueue[K] = FairQueue()
        self._locks: LockTable[K] = LockTable()
        self._waiting: dict[K, FairQueue[K]] = {}
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

    def _push(self, key: K, lane: FairQueue[K]) -> None:
        self._waiting[key] = lane
        lane.push(self._share(key), key)
        self._available.set()


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
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Work until the queue is closed, and finish running passes. Cancel to stop within a pass."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._work(), name=f"worker-{number}")

    async def _work(self) -> None:
        while True:
            # A pass without changes never awaits I/O. The event loop starts one in each iteration: passes of
            # all workers in a row would delay everything else in the process.
            async with self._turn:
                await asyncio.sleep(0)
                try:
                    key = await self._queue.get()
                except QueueClosed:
                    return
            try:
                await self._pass(key)
            finally:
                self._queue.done(key)

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
