"""The age of every watch: a watch that froze in silence is told by nothing but the time since it spoke."""

import asyncio
import time
from collections.abc import Callable, Mapping


class Watches:
    """When each watch last proved to be alive: by an event, a bookmark, or a list that agreed with it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, float] = {}
        self._unsynced: set[str] = set()
        self._changed = asyncio.Event()

    def expect(self, resource: str) -> None:
        """There is such a watch; until its first list is complete the caches are not ready."""
        self._beats.setdefault(resource, self._clock())
        self._unsynced.add(resource)

    def synced(self, resource: str) -> None:
        """The first list is complete."""
        self._unsynced.discard(resource)
        self.beat(resource)
        self._changed.set()

    def beat(self, resource: str) -> None:
        """The watch proved that it is alive."""
        self._beats[resource] = self._clock()

    async def all_synced(self) -> None:
        """Wait until the first list of every watch is complete."""
        while self._unsynced:
            self._changed.clear()
            await self._changed.wait()

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Watches whose first list is not complete."""
        return tuple(sorted(self._unsynced))

    def ages(self) -> Mapping[str, float]:
        """Seconds since each watch proved that it is alive."""
        now = self._clock()
        return {resource: now - beat for resource, beat in self._beats.items()}
