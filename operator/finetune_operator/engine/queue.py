"""A queue of keys: each at most once, one worker a key at a time, delayed and backed off.

Everything happens in one event loop; nothing here is safe to call from another thread.
"""

import asyncio
import random
from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_RETRY: Final = 0.1
LONGEST_RETRY: Final = 60.0


class QueueClosed(Exception):
    """Nothing is handed out any more."""


class WorkQueue(Generic[K]):
    """Keys that wait for a worker.

    A key that is added while a worker has it is handed out again when that worker is done, never to two
    at once. Of several delays the earliest wins.
    """

    def __init__(self) -> None:
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._active: dict[K, float | None] = {}
        self._failures: dict[K, int] = {}
        self._available = asyncio.Event()
        self._closed = False

    @property
    def depth(self) -> int:
        """Keys that could be worked on now."""
        return len(self._ready)

    def add(self, key: K, delay: float = 0.0) -> None:
        """Hand the key out in `delay` seconds, or earlier when it was to be earlier."""
        due = asyncio.get_running_loop().time() + delay
        if key in self._active:
            asked = self._active[key]
            self._active[key] = due if asked is None else min(asked, due)
        else:
            self._schedule(key, due)

    async def get(self) -> K:
        """The next key; call `done` with it afterwards.

        Raises:
            QueueClosed: the queue was closed.
        """
        while not self._ready and not self._closed:
            self._available.clear()
            await self._available.wait()
        if self._closed:
            raise QueueClosed
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._active[key] = None
        return key

    def done(self, key: K) -> None:
        """The worker is through with the key."""
        due = self._active.pop(key)
        if due is not None:
            self._schedule(key, due)

    def retry(
        self, key: K, *, first: float = FIRST_RETRY, longest: float = LONGEST_RETRY, at_least: float = 0.0
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
        """Hand out nothing more; every waiting `get` raises."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._available.set()

    def reopen(self) -> None:
        """Hand out keys again after `close`, beginning with those that were ready."""
        self._closed = False

    def _schedule(self, key: K, due: float) -> None:
        if key in self._waiting:
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
        self._waiting.add(key)
        self._ready.append(key)
        self._available.set()
