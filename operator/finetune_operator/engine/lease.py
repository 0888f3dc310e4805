# SPDX-License-Identifier: Apache-2.0
"""Leader election by a `coordination.k8s.io` Lease, with the protocol of client-go."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Conflict, NotActive
from finetune_operator.engine.resources import LEASE
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Times of the election. The holder gives up well before another process may take over."""

    duration_seconds: float = 15.0
    """Time that other processes wait after the holder's last renewal."""
    deadline_seconds: float = 10.0
    """Time that the holder continues without a successful renewal."""
    retry_seconds: float = 2.0
    """Time between two attempts, of the holder and of the other processes."""
    stall_seconds: float = 60.0
    """Time that the holder's event loop may be blocked before the holder lets the Lease expire."""

    @classmethod
    def of(cls, duration_seconds: float) -> "LeaseTimes":
        """The default proportions for another duration."""
        duration = duration_seconds
        return cls(duration, duration * 2 / 3, duration * 2 / 15, duration * 4)


class Lease:
    """The Lease that makes this process the active one.

    Clocks of different nodes are never compared. What counts is how long the renewal time of another holder
    has not changed, by this process's monotonic clock.

    Args:
        cluster: client of the API server, without this Lease as its fence.
        namespace, name: namespace and name of the Lease.
        identity: identity of this process.
        times: times of the election.
        clock: monotonic seconds.
        stalled_seconds: seconds since the process's main event loop last ran.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        namespace: str,
        name: str,
        *,
        identity: str,
        times: LeaseTimes = LeaseTimes(),
        clock: Callable[[], float] = time.monotonic,
        stalled_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times
        self._clock = clock
        self._stalled_seconds = stalled_seconds
        self._renewed = 0.0
        self._seen: Manifest | None = None
        self._seen_at = 0.0
        self.held = False

    @property
    def transitions(self) -> int:
        """How often the Lease has changed its holder, by its last known state."""
        return int(self._seen["spec"].get("leaseTransitions") or 0) if self._seen else 0

    def check(self) -> None:
        """Check right before a write that no other process can hold the Lease.

        Raises:
            NotActive: this process does not hold the Lease, or renewed it so long ago that another process
                may take over soon. After a freeze of the process, this is detected here first.
        """
        if not self.held or self._clock() - self._renewed >= self._times.deadline_seconds:
            raise NotActive(f"write not sent: the lease {self._name} is not held, or was not renewed in time")

    async def acquire(self) -> None:
        """Return once this process holds the Lease."""
        while True:
            started = self._clock()
            try:
                async with asyncio.timeout(self._times.deadline_seconds):
                    if await self._try():
                        self._renewed = started
                        self.held = True
                        logger.info("this process is active: it holds the lease %s", self._name)
                        return
            except (ApiError, TimeoutError) as error:
                logger.warning("cannot acquire the lease %s: %s", self._name, error)
            await asyncio.sleep(self._times.retry_seconds)

    async def keep(self) -> None:
        """Renew the Lease. Return when it is lost, or when the main event loop was blocked for too long."""
        while await self._renew():
            pass
        self.held = False

    async def _renew(self) -> bool:
        """Renew once, after the usual pause; False if the Lease is lost or given up."""
        await asyncio.sleep(self._times.retry_seconds)
        stalled = self._stalled_seconds()
        if stalled > self._times.stall_seconds:
            logger.error("event loop blocked for %.0f s: the lease %s is left to expire", stalled, self._name)
            return False
        started = self._clock()
        remaining = self._renewed + self._times.deadline_seconds - started
        try:
            async with asyncio.timeout(max(0.0, remaining)):
                if not await self._try():
                    logger.error("lost the lease %s to %s", self._name, self._holder() or "no holder")
                    return False
            # The time before the request: the API server may have written at any time since.
            self._renewed = started
        except TimeoutError:
            logger.error(  # noqa: TRY400 - the traceback of a time-out is of no use
                "cannot renew the lease %s for %.0f s: giving it up", self._name, self._times.deadline_seconds
            )
            return False
        except ApiError as error:
            logger.warning("cannot renew the lease %s: %s", self._name, error)
        return True

    async def release(self) -> None:
        """Let another process take over at once. Call it after the last write."""
        if not self.held or self._seen is None:
            return
        self.held = False
        spec = {**self._seen["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            async with asyncio.timeout(self._times.retry_seconds):
                await self._cluster.replace({**self._seen, "spec": spec})
        except (ApiError, TimeoutError) as error:
            logger.warning("cannot release the lease %s, so it expires by itself: %s", self._name, error)

    async def _try(self) -> bool:
        """Try once to acquire or renew; return whether this process holds the Lease."""
        current = self._seen if self.held else None
        if current is None:
            current = await self._cluster.get(LEASE, self._namespace, self._name)
        try:
            if current is None:
                self._observe(await self._cluster.create(self._manifest(transitions=0)))
                return True
            self._observe(current)
            if not self._free(current):
                return False
            self._observe(await self._cluster.replace(self._taken(current)))
        except Conflict:
            # Another process wrote it in the meantime, so its state decides.
            current = await self._cluster.get(LEASE, self._namespace, self._name)
            if current is None:
                return False
            self._observe(current)
            if self._holder() != self._identity:
                return False
            self._observe(await self._cluster.replace(self._taken(current)))
        return True

    def _free(self, lease: Manifest) -> bool:
        holder = lease["spec"].get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        duration = float(lease["spec"].get("leaseDurationSeconds") or self._times.duration_seconds)
        return self._clock() - self._seen_at > duration

    def _observe(self, lease: Manifest) -> None:
        old = self._seen["metadata"]["resourceVersion"] if self._seen else ""
        if lease["metadata"]["resourceVersion"] != old:
            self._seen_at = self._clock()
        self._seen = lease

    def _holder(self) -> str:
        return str(self._seen["spec"].get("holderIdentity", "")) if self._seen else ""

    def _taken(self, lease: Manifest) -> Manifest:
        same = lease["spec"].get("holderIdentity") == self._identity
        transitions = int(lease["spec"].get("leaseTransitions") or 0)
        mine = self._manifest(transitions if same else transitions + 1)
        if same and lease["spec"].get("acquireTime"):
            mine["spec"]["acquireTime"] = lease["spec"]["acquireTime"]
        return {**mine, "metadata": lease["metadata"]}

    def _manifest(self, transitions: int) -> dict[str, Any]:
        now = _now()
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._times.duration_seconds)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }


def _now() -> str:
    """A `MicroTime`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
