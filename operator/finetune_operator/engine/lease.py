# SPDX-License-Identifier: Apache-2.0
"""Which process is active: leader election by a Lease, and the Leases of other installations.

The election uses the protocol of client-go on a `coordination.k8s.io` Lease. An active process also gives way
to an active installation of this operator that watches one of its namespaces and was earlier.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Conflict, NotActive, Rejected
from finetune_operator.engine.resources import CLUSTER_ROLE_BINDING, LEASE
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


T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 0.5
STOP_SECONDS: Final = 5.0

OpenCluster = Callable[[], KubernetesClient]
"""Creates the client that only the Lease uses; called in the Lease's event loop."""
MakeLease = Callable[[KubernetesClient, Callable[[], float]], Lease]
"""Creates the Lease from that client and a function for the seconds since the last heartbeat."""


class LeaseThread:
    """A `Lease` in a thread and an event loop of its own, so that a busy main loop does not delay renewals.

    A blocked main loop must not hold the Lease for ever. So the main loop records a heartbeat, and the Lease
    is left to expire after `LeaseTimes.stall_seconds` without one.

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


ALL_NAMESPACES: Final = "*"
RECHECK_SECONDS: Final = 30.0
"""Seconds between two checks by an active installation."""


LeaseName = tuple[str, str]
"""Namespace and name of a Lease."""


@dataclass(frozen=True, slots=True)
class InstallationMark:
    """Label and annotations of the ClusterRoleBinding of each installation.

    Attributes:
        label: label that selects these ClusterRoleBindings.
        lease: annotation with the Lease, as `namespace/name`.
        namespaces: annotation with the watched namespaces, separated by commas, or EVERYWHERE.
    """

    label: str
    lease: str
    namespaces: str

    def read(self, binding: Manifest) -> tuple[LeaseName, frozenset[str]] | None:
        """The Lease of the installation and its namespaces; None if the ClusterRoleBinding names no Lease."""
        annotations = binding["metadata"].get("annotations") or {}
        namespace, _, name = annotations.get(self.lease, "").partition("/")
        if not (namespace and name):
            return None
        watched = annotations.get(self.namespaces) or ALL_NAMESPACES
        return (namespace, name), frozenset(watched.split(","))


class _Renewal(NamedTuple):
    version: str
    seen_at: float


class Installations:
    """The Leases of all installations that have a marked ClusterRoleBinding.

    It names the Lease of each installation and the namespaces that it watches. Only administrators may write
    ClusterRoleBindings, but everyone with the role `edit` in one namespace may write Leases there: a Lease
    that no ClusterRoleBinding names is never read.

    An active installation stays active: a new one does not acquire its Lease until the other is gone. If two
    start at the same time, the one that acquired its Lease first stays active. Both read the same Leases, so
    they come to the same result.

    Clocks of different nodes are never compared: another installation is active as long as its Lease is held
    and changes.

    Args:
        cluster: client of the API server.
        namespace, name: namespace and name of the own Lease.
        mark: label and annotations of the ClusterRoleBindings.
        namespaces: namespaces that this installation watches; empty: all.
        patience_seconds: seconds after its last renewal during which another installation counts as active.
        clock: monotonic seconds.

    Attributes:
        other: Leases, as `namespace/name` and separated by commas, that this installation waits for or gives
            way to; empty: none.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        namespace: str,
        name: str,
        *,
        mark: InstallationMark,
        namespaces: Collection[str],
        patience_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._own = (namespace, name)
        self._mark = mark
        self._watched = frozenset(namespaces) or frozenset({ALL_NAMESPACES})
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._renewals: dict[LeaseName, _Renewal] = {}
        self._is_refused = False
        self.other = ""

    async def wait_until_alone(self) -> None:
        """Return once no other installation is active in the same namespaces."""
        while True:
            if not await self._finds_other(is_active=False):
                return
            await asyncio.sleep(self._patience_seconds / 4)

    async def is_preceded(self) -> bool:
        """Whether another installation is active that acquired its Lease earlier than this active one."""
        return await self._finds_other(is_active=True)

    async def wait_until_preceded(self) -> None:
        """Return when this active installation has to give way to another one.

        A term begins with `is_preceded`, so the first check here comes RECHECK_SECONDS later.
        """
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            if await self._finds_other(is_active=True):
                return

    async def _finds_other(self, *, is_active: bool) -> bool:
        try:
            others = await self._others(is_active=is_active)
        except ApiError as error:
            self._log_failure(error)
            return False
        self._is_refused = False
        other = ", ".join(map("/".join, others))
        if other and other != self.other:
            logger.error(
                "another installation of this operator is active in the same namespaces (lease %s)."
                " This one stays inactive until that one is gone: uninstall one of them, or set"
                " watchNamespaces that do not overlap",
                other,
            )
        elif self.other and not other:
            logger.info("the other installation (lease %s) is not active any more", self.other)
        self.other = other
        return bool(other)

    def _log_failure(self, error: ApiError) -> None:
        if isinstance(error, Rejected) and self._is_refused:
            return
        self._is_refused = isinstance(error, Rejected)
        logger.warning("other installations of this operator cannot be detected: %s", error)

    async def _others(self, *, is_active: bool) -> list[LeaseName]:
        """Leases of other active installations; if this one is active, only of those that were earlier."""
        live: dict[LeaseName, str] = {}
        for key in await self._overlapping():
            lease = await self._cluster.get(LEASE, *key)
            if lease is not None and self._is_live(key, lease):
                live[key] = _read_acquire_time(lease)
        if live and is_active:
            lease = await self._cluster.get(LEASE, *self._own)
            own = "" if lease is None else _read_acquire_time(lease)
            live = {key: acquired for key, acquired in live.items() if (acquired, key) < (own, self._own)}
        return sorted(live)

    async def _overlapping(self) -> set[LeaseName]:
        """Leases of the other installations that watch a namespace of this one, active or not."""
        found = set()
        async for bindings, _ in self._cluster.pages(CLUSTER_ROLE_BINDING, "", self._mark.label):
            for binding in bindings:
                installation = self._mark.read(binding)
                if installation is not None and self._overlaps(installation[1]):
                    found.add(installation[0])
        return found - {self._own}

    def _is_live(self, key: LeaseName, lease: Manifest) -> bool:
        version = lease["metadata"]["resourceVersion"]
        last = self._renewals.get(key)
        is_renewed = last is None or last.version != version
        if lease["spec"].get("holderIdentity") and is_renewed:
            last = self._renewals[key] = _Renewal(version, self._clock())
        # A released Lease still counts for a while: in a rolling update the next process acquires it at once.
        return last is not None and self._clock() - last.seen_at < self._patience_seconds

    def _overlaps(self, watched: frozenset[str]) -> bool:
        return ALL_NAMESPACES in watched | self._watched or bool(watched & self._watched)


def _read_acquire_time(lease: Manifest) -> str:
    """Time of the acquisition, as a `MicroTime`. Earlier times sort before later ones."""
    return str(lease["spec"].get("acquireTime") or "")
