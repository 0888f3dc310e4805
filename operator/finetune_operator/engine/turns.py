"""Passes that decide about one thing take turns, so that each sees what the one before it wrote."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """A lock for each thing that is decided about, for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def at(self, thing: Hashable | None) -> AsyncIterator[None]:
        """Alone with it, first come first served; at once where there is nothing to be alone with."""
        if thing is None:
            yield
            return
        lock = self._locks.setdefault(thing, asyncio.Lock())
        async with lock:
            yield
