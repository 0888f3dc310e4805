# SPDX-License-Identifier: Apache-2.0
"""Fair queues of keys and locks for them. Shares, such as namespaces, are served in rotation."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Lane(Generic[K]):
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
