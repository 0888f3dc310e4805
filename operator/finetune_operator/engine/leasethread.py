# SPDX-License-Identifier: Apache-2.0
"""The Lease in a thread and an event loop of its own, so that a busy main loop does not delay renewals.

A blocked main loop must not hold the Lease for ever. So the main loop records a heartbeat, and the Lease is
left to expire after `LeaseTimes.stall_seconds` without one.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Final, TypeVar

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.lease import Lease

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 0.5
STOP_SECONDS: Final = 5.0

OpenCluster = Callable[[], KubernetesClient]
"""Creates the client that only the Lease uses; called in the Lease's event loop."""
MakeLease = Callable[[KubernetesClient, Callable[[], float]], Lease]
"""Creates the Lease from that client and a function for the seconds since the last heartbeat."""


class LeaseThread:
    """A `Lease` for callers in another event loop.

    Args:
        open_cluster: creates the client.
        make: creates the Lease.
        clock: monotonic seconds.
    """

    def __init__(
        self, open_cluster: OpenCluster, make: MakeLease, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_cluster = open_cluster
        self._make = make
        self._clock = clock
        self._last_heartbeat = clock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lease", daemon=True)
        self._thread.start()
        self._cluster, self._lease = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    @property
    def held(self) -> bool:
        return self._lease.held

    @property
    def transitions(self) -> int:
        return self._lease.transitions

    def check(self) -> None:
        """As `Lease.check`; may be called from any thread."""
        self._lease.check()

    async def acquire(self) -> None:
        """As `Lease.acquire`."""
        await self._call(self._lease.acquire())

    async def keep(self) -> None:
        """As `Lease.keep`. The calling event loop records the heartbeats."""
        heartbeats = asyncio.create_task(self._record_heartbeats())
        try:
            await self._call(self._lease.keep())
        finally:
            heartbeats.cancel()

    async def release(self) -> None:
        """As `Lease.release`."""
        await self._call(self._lease.release())

    async def close(self) -> None:
        """End the thread."""
        await self._call(self._cluster.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _open(self) -> tuple[KubernetesClient, Lease]:
        cluster = self._open_cluster()
        return cluster, self._make(cluster, self._stalled_seconds)

    async def _call(self, work: Coroutine[object, object, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _record_heartbeats(self) -> None:
        while True:
            self._last_heartbeat = self._clock()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _stalled_seconds(self) -> float:
        return self._clock() - self._last_heartbeat
