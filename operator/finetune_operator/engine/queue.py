"""A queue of keys: each at most once, one worker per key and per lock, fair, delayed and backed off.

Everything happens in one event loop; nothing here is safe to call from another thread.
"""

import asyncio
import random
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from finetune_operator.engine.fairness import Lane, LockTable

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 60.0
PARKED_BATCH_SIZE: Final = 500
"""Keys whose lock is found to be taken before the rest of the process has its turn."""


class QueueClosed(Exception):
    """Nothing is handed out any more."""


class WorkQueue(Generic[K]):
    """Keys that wait for a worker.

    A key that is added while a worker has it is handed out again when that worker is done, never to two
    at once. Of several delays the earliest wins.

    Args:
        share: what a key belongs to; shares are served in rotation, so that many keys of one delay the keys
            of another by one pass each.
        lock: what a key must be alone with while it is worked on, or None; asked when the key is about to be
            handed out. A key whose lock is taken waits without a worker.
    """

    def __init__(
        self,
        share: Callable[[K], Hashable] = lambda _: None,
        lock: Callable[[K], Hashable | None] = lambda _: None,
    ) -> None:
        self._share = share
        self._lock = lock
        self._ready: Lane[K] = Lane()
        self._idle: Lane[K] = Lane()
        self._locks: LockTable[K] = LockTable()
        self._waiting: dict[K, Lane[K]] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._active: dict[K, float | None] = {}
        self._failures: dict[K, int] = {}
        self._available = asyncio.Event()
        self._closed = False

    @property
    def depth(self) -> int:
        """Keys that wait for a worker or for their lock."""
        return len(self._waiting)

    def add(self, key: K, delay: float = 0.0) -> None:
        """Hand the key out in `delay` seconds, or earlier when it was to be earlier; not while closed."""
        if self._closed:
            return
        due = asyncio.get_running_loop().time() + delay
        if key in self._active:
            asked = self._active[key]
            self._active[key] = due if asked is None else min(asked, due)
        else:
            self._schedule(key, due)

    def add_idle(self, key: K) -> None:
        """Hand the key out when no other one is ready, unless it waits or is worked on already."""
        if not (self._closed or key in self._active or key in self._waiting):
            self._push(key, self._idle)

    async def get(self) -> K:
        """The next key; call `done` with it afterwards.

        Raises:
            QueueClosed: the queue was closed.
        """
        while not self._closed:
            # Before the look: what becomes available during it is not to be missed.
            self._available.clear()
            for lane in (self._ready, self._idle):
                parked = 0
                while (key := lane.pop()) is not None:
                    if self._takes(key):
                        return key
                    parked += 1
                    if parked % PARKED_BATCH_SIZE == 0:
                        await asyncio.sleep(0)
            await self._available.wait()
        raise QueueClosed

    def done(self, key: K) -> None:
        """The worker is through with the key."""
        due = self._active.pop(key)
        self._call(self._locks.leave(key))
        if due is not None and not self._closed:
            self._schedule(key, due)

    def retry(
        self,
        key: K,
        *,
        first: float = FIRST_RETRY_SECONDS,
        longest: float = MAX_RETRY_SECONDS,
        at_least: float = 0.0,
    ) -> float:
        """Hand the key out again after twice the last wait, with jitter.

        Returns:
            Seconds until then.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        full: float = min(longest, first * 2.0 ** min(failures, 30))
        # Half of it at random, so that what failed together does not come back together.
        delay = max(at_least, full * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        self.add(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key succeeded: its next failure waits the shortest time again."""
        self._failures.pop(key, None)

    def close(self) -> None:
        """Hand out nothing more, hold nothing and take nothing; every waiting `get` raises."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()
        self._ready.clear()
        self._idle.clear()
        self._locks.clear()
        self._failures.clear()
        self._available.set()

    def reopen(self) -> None:
        """Take and hand out keys again after `close`."""
        self._closed = False

    def _takes(self, key: K) -> bool:
        """Whether the key may be worked on now; else it waits for its lock."""
        lock = self._lock(key)
        self._call(self._locks.skipped(key, lock))
        if not self._locks.enter(key, lock, urgent=self._waiting[key] is self._ready):
            return False
        del self._waiting[key]
        self._active[key] = None
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return True

    def _call(self, key: K | None) -> None:
        """Its lock has come: it goes before the other keys of its share."""
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
            # It waits for its lock.
            self._waiting[key] = self._ready
            self._locks.hurry(key)

    def _push(self, key: K, lane: Lane[K]) -> None:
        self._waiting[key] = lane
        lane.push(self._share(key), key)
        self._available.set()
