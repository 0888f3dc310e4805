"""Keys in order, shared fairly: each share (a namespace) is served in rotation, whatever others queue."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Lane(Generic[K]):
    """A first-in-first-out queue per share; `pop` takes from one share after the other.

    Every operation is O(1), however many keys or shares there are.
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[Hashable, OrderedDict[K, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, share: Hashable, key: K, *, first: bool = False) -> None:
        """Add a key that is not in the lane; `first` puts it before the other keys of its share."""
        keys = self._shares.setdefault(share, OrderedDict())
        keys[key] = None
        if first:
            keys.move_to_end(key, last=False)
        self._length += 1

    def pop(self) -> K | None:
        """The first key of the share whose turn it is, or None where the lane is empty."""
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
        """Remove a key; False where the lane does not hold it."""
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
    """Mutexes, called locks, for keys that must not be worked on at the same time.

    First come, first served, urgent keys before the others; nothing here waits, so a key that waits for its
    lock holds no worker. Every operation is O(1).
    """

    def __init__(self) -> None:
        self._holders: dict[Hashable, K] = {}
        self._locks: dict[K, Hashable] = {}
        self._parked: dict[K, Hashable] = {}
        self._urgent: dict[Hashable, OrderedDict[K, None]] = {}
        self._others: dict[Hashable, OrderedDict[K, None]] = {}
        self._called: dict[K, Hashable] = {}

    def enter(self, key: K, lock: Hashable | None, *, urgent: bool = True) -> bool:
        """Whether the key may be worked on now; else it waits until `leave` or `skipped` returns it."""
        if lock is None:
            return True
        if lock in self._holders:
            waiting = (self._urgent if urgent else self._others).setdefault(lock, OrderedDict())
            waiting[key] = None
            self._parked[key] = lock
            if self._called.pop(key, None) == lock:
                # It was called, and another key was quicker: it keeps its place.
                waiting.move_to_end(key, last=False)
            return False
        self._holders[lock] = key
        self._locks[key] = lock
        return True

    def hurry(self, key: K) -> None:
        """A key that waits is urgent now."""
        lock = self._parked.get(key)
        if lock is not None and self._take(self._others, lock, key):
            self._urgent.setdefault(lock, OrderedDict())[key] = None

    def skipped(self, key: K, lock: Hashable | None) -> K | None:
        """The next key of the lock that this one was called for and no longer needs, if there is one."""
        called = self._called.get(key)
        if called is None or called == lock:
            return None
        del self._called[key]
        return self._next(called)

    def leave(self, key: K) -> K | None:
        """The key is done; the next one that waited for the same lock, if there is one."""
        self._called.pop(key, None)
        lock = self._locks.pop(key, None)
        if lock is None:
            return None
        del self._holders[lock]
        return self._next(lock)

    def clear(self) -> None:
        """Forget the keys that wait; locks that are held stay so."""
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
        """Remove a key from those that wait for the lock; False where it is not among them."""
        keys = waiting.get(lock)
        if keys is None or key not in keys:
            return False
        del keys[key]
        if not keys:
            del waiting[lock]
        return True
