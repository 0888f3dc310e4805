# SPDX-License-Identifier: Apache-2.0
"""Lists and watches that keep the stores current, and the state of these watches.

The state is when each watch was last alive, and which namespaces have complete first lists. A frozen watch
shows no error: only the time since its last event reveals it. A watch that is refused is not frozen: it gets
responses, and needs a right.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected
from finetune_operator.engine.resources import ResourceType
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

EVERYWHERE: Final = ""
"""Used instead of a namespace for lists of the whole cluster."""


def watch_name(plural: str, namespace: str) -> str:
    """Name of the watch of one type, in one namespace or everywhere."""
    return f"{plural}/{namespace}" if namespace else plural


def _namespace(name: str) -> str:
    return name.partition("/")[2]


class Watches:
    """When each watch was last alive, and which namespaces may be reconciled.

    A namespace is complete when the first lists of its watches, and of the watches of the whole cluster, are
    complete. It then stays complete. If the API server forbids a first list, the namespace is left out until
    the list is allowed; other namespaces do not wait for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, float] = {}
        self._answers: dict[str, float] = {}
        self._unsynced: dict[str, set[str]] = {}
        self._forbidden: set[str] = set()
        self._left_out: tuple[str, ...] | None = None
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[str], None]] = []

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call the listener with every namespace that becomes complete."""
        self._listeners.append(listener)

    def expect(self, name: str) -> None:
        """Register a watch. Its namespace is not complete before its first list is."""
        self._beats.setdefault(name, self._clock())
        self._unsynced.setdefault(_namespace(name), set()).add(name)
        self._left_out = None

    def synced(self, name: str) -> None:
        """Record a complete list."""
        self.beat(name)
        self._forbidden.discard(name)
        if self.is_known(name):
            return
        namespace = _namespace(name)
        self._unsynced[namespace].discard(name)
        self._left_out = None
        self._changed.set()
        for each in self._namespaces() if namespace == EVERYWHERE else (namespace,):
            if self.complete(each):
                self._notify(each)

    def beat(self, name: str) -> None:
        """Record that the watch is alive: by an event, a bookmark, or a list that found no missed change."""
        self._beats[name] = self._answers[name] = self._clock()

    def refused(self, name: str, error: Rejected) -> None:
        """Record that the API server refused the list or the watch, so that it does not count as frozen."""
        self._answers[name] = self._clock()
        if error.code != HTTPStatus.FORBIDDEN or self.is_known(name) or name in self._forbidden:
            return
        self._forbidden.add(name)
        self._changed.set()
        namespace = _namespace(name)
        logger.warning(
            "the operator may not list %s, so it does nothing in %s: helm upgrade restores the chart's roles;"
            " remove a deleted namespace from watchNamespaces",
            name,
            f"namespace {namespace}" if namespace else "any namespace",
        )

    async def all_settled(self) -> None:
        """Return when `waiting_for` is empty."""
        while self.waiting_for:
            self._changed.clear()
            await self._changed.wait()

    def complete(self, namespace: str) -> bool:
        """Whether all lists that a pass for an object of this namespace needs are complete."""
        return not self._unsynced.get(EVERYWHERE) and not self._unsynced.get(namespace)

    def is_known(self, name: str) -> bool:
        """Whether the first list of this watch is complete."""
        return name not in self._unsynced.get(_namespace(name), ())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Namespaces that are not complete. Cached, because every pass reads it."""
        if self._left_out is None:
            self._left_out = tuple(each for each in self._namespaces() if each and not self.complete(each))
        return self._left_out

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Watches whose first list must be complete before any pass.

        Forbidden lists are included only if no namespace is complete.
        """
        unsynced = {name for names in self._unsynced.values() for name in names}
        served = any(each and self.complete(each) for each in self._namespaces())
        return tuple(sorted(unsynced - self._forbidden if served else unsynced))

    def ages(self) -> Mapping[str, float]:
        """Seconds since each watch was last known to be alive."""
        now = self._clock()
        return {name: now - beat for name, beat in self._beats.items()}

    def age(self, plural: str, namespace: str) -> float:
        """Seconds since the watch of a type was last alive, in the namespace or everywhere; 0 without one."""
        now, names = self._clock(), (watch_name(plural, namespace), plural)
        return now - max((self._beats[name] for name in names if name in self._beats), default=now)

    def silences(self) -> Mapping[str, float]:
        """Seconds since the last event, list or refusal of each watch that has had a complete list."""
        now = self._clock()
        return {name: now - answer for name, answer in self._answers.items() if self.is_known(name)}

    def _namespaces(self) -> list[str]:
        return sorted(self._unsynced)

    def _notify(self, namespace: str) -> None:
        for listener in self._listeners:
            listener(namespace)


RELIST_SECONDS: Final = 600
"""Seconds between two lists of a type, which find changes that the watch missed."""


BATCH_SIZE: Final = 10
"""Number of objects after which the list yields to the event loop: a few milliseconds of work."""


class ListResult(NamedTuple):
    """Result of a list."""

    resource_version: str
    """Resource version of the list."""
    missed: int
    """Number of changes that the store did not know before the list."""


async def read_list(
    cluster: KubernetesClient,
    store: ObjectStore,
    type_: ResourceType,
    namespace: str = "",
    selector: str = "",
) -> ListResult:
    """Make the store equal to the objects that exist.

    The list is read page by page, so that at most one unprocessed page is in memory. A list from a
    restored etcd begins a new epoch of the store.

    Args:
        cluster: client of the API server.
        store: store of this type; it has only objects that match the selector.
        type_: type of the objects.
        namespace: namespace to list; empty: all.
        selector: label selector.

    Raises:
        ApiError: the list is incomplete. The store keeps the pages that were read.
    """
    uids: set[str] = set()
    missed, resource_version, seen_before = 0, "", store.newest
    async for page, listed_at in cluster.pages(type_, namespace, selector):
        resource_version = listed_at
        if _is_of_another_epoch(store, page, int(listed_at), seen_before):
            store.begin_epoch()
            seen_before = 0
        store.note_version(int(listed_at))
        for number, obj in enumerate(page, 1):
            uids.add(obj["metadata"]["uid"])
            missed += store.put(obj)
            if number % BATCH_SIZE == 0:
                # Parsing, indexing and packing a whole page would hold up the rest of the process.
                await asyncio.sleep(0)
    return ListResult(resource_version, missed + store.prune(uids, resource_version, namespace))


def _is_of_another_epoch(store: ObjectStore, page: list[Manifest], listed_at: int, seen_before: int) -> bool:
    """Whether etcd was restored from a snapshot since `seen_before`, the newest version before the list.

    Without a restore, no list is older than what was seen before it. After a restore a list is older, until
    as many versions have been written as were lost. From then on, single objects are older than before.
    """
    return listed_at < seen_before or any(store.is_older_than_known(obj, listed_at) for obj in page)


RECONNECT_SECONDS: Final = 0.1
MAX_WAIT_SECONDS: Final = 30.0


class Reflector:
    """Keeps the store of one type current: list, watch for a while, list again.

    In one namespace (or all), restricted by a label selector.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        type_: ResourceType,
        store: ObjectStore,
        watches: Watches,
        *,
        namespace: str = "",
        selector: str = "",
        relist_seconds: int = RELIST_SECONDS,
    ) -> None:
        self.name = watch_name(type_.plural, namespace)
        self._cluster = cluster
        self._type = type_
        self._store = store
        self._watches = watches
        self._namespace = namespace
        self._selector = selector
        self._relist_seconds = relist_seconds
        self._resource_version = ""
        """Resource version of the last list or event; empty: a list is needed."""
        self._is_broken = False
        """Whether a watch after this list has broken."""
        watches.expect(self.name)

    async def run(self) -> None:
        """Run until cancelled. After every error of the API server, wait and try again."""
        clock = asyncio.get_running_loop().time
        wait = RECONNECT_SECONDS
        while True:
            began = clock()
            try:
                if not self._resource_version:
                    await self._list()
                await self._watch()
                # A list finds changes that the watch missed.
                self._resource_version = ""
                wait = RECONNECT_SECONDS
            except ApiError as error:
                if isinstance(error, Rejected):
                    # Usually 410: the API server has dropped the history since this version.
                    self._resource_version = ""
                    self._watches.refused(self.name, error)
                if clock() - began > MAX_WAIT_SECONDS:
                    wait = RECONNECT_SECONDS
                logger.warning("cannot watch %s: %s; next try in %.1f s", self.name, error, wait)
                await asyncio.sleep(wait)
                wait = min(MAX_WAIT_SECONDS, wait * 2)

    async def _list(self) -> None:
        listed = await read_list(self._cluster, self._store, self._type, self._namespace, self._selector)
        self._resource_version = listed.resource_version
        self._is_broken = False
        self._watches.synced(self.name)

    async def _watch(self) -> None:
        """Watch from the newest version until the server ends the stream.

        Raises:
            Rejected: a list is needed first.
        """
        if self._is_broken and await self._is_restored():
            # An API server with a restored etcd sends no events before it reaches the requested version.
            return
        self._is_broken = True
        stream = self._cluster.watch(
            self._type, self._namespace, self._selector, self._resource_version, seconds=self._relist_seconds
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._watches.beat(self.name)
                obj = event["object"]
                if event["type"] == "ERROR":
                    raise Rejected(obj.get("code", 0), obj.get("reason", ""), obj.get("message", ""))
                self._take(event["type"], obj)
                self._resource_version = obj["metadata"]["resourceVersion"]
                self._store.note_version(int(self._resource_version))
        await asyncio.sleep(RECONNECT_SECONDS)

    async def _is_restored(self) -> bool:
        """Whether the API server has only older versions, because its etcd was restored."""
        newest = await self._cluster.newest(self._type, self._namespace)
        return newest < int(self._resource_version)

    def _take(self, event: str, obj: Manifest) -> None:
        if event in {"ADDED", "MODIFIED"}:
            self._store.put(obj)
        elif event == "DELETED":
            # Also sent for an object whose labels do not match the selector any more.
            self._store.remove(obj)


FIRST_RETRY_SECONDS: Final = 2.0
MAX_RETRY_SECONDS: Final = 30.0
TRY_SECONDS: Final = 1


class Sweeper:
    """Lists one type, in one namespace (or all): at the start, every `period_seconds`, and on request.

    For the types that Kopf watches. Kopf lists again after a gap, but reports no deletions in it, and a watch
    may freeze without an error. A list finds both. It removes what is gone, and the watch counts as alive
    only if the list finds no missed change.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        type_: ResourceType,
        store: ObjectStore,
        watches: Watches,
        *,
        namespace: str = "",
        period_seconds: float,
    ) -> None:
        self.name = watch_name(type_.plural, namespace)
        self._cluster = cluster
        self._type = type_
        self._store = store
        self._watches = watches
        self._namespace = namespace
        self._period_seconds = period_seconds
        self._requested = asyncio.Event()
        watches.expect(self.name)

    def request(self) -> None:
        """List as soon as possible, because the watch may have missed a change."""
        self._requested.set()

    async def run(self) -> None:
        """Run until cancelled. While the type is not installed or may not be listed, try again."""
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._sweep()
            except ApiError as error:
                if isinstance(error, Rejected):
                    self._watches.refused(self.name, error)
                logger.warning("%s; next try in %.0f s", self._explained(error), wait)
                await asyncio.sleep(wait)
                wait = min(MAX_RETRY_SECONDS, wait * 2)
            else:
                wait = FIRST_RETRY_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._requested.wait(), self._period_seconds)

    async def catch_up(self) -> None:
        """Make the store equal to the objects that exist now, without waiting for the watch.

        It retries until it succeeds, except if the type may not be listed.
        """
        while self._watches.is_known(self.name):
            try:
                await read_list(self._cluster, self._store, self._type, self._namespace)
            except ApiError as error:
                logger.warning("%s; the first pass waits for this list", self._explained(error))
                if isinstance(error, Rejected) and error.code != HTTPStatus.GONE:
                    return
                await asyncio.sleep(FIRST_RETRY_SECONDS)
            else:
                return

    async def _sweep(self) -> None:
        self._requested.clear()
        listed = await read_list(self._cluster, self._store, self._type, self._namespace)
        if listed.missed == 0 or not self._watches.is_known(self.name):
            self._watches.synced(self.name)
        else:
            logger.info("a list of %s found %d changes before the watch", self.name, listed.missed)
            await self._try_watch(listed.resource_version)

    async def _try_watch(self, resource_version: str) -> None:
        """Open a watch for a moment: if it is refused, the watch that missed changes is not frozen."""
        stream = self._cluster.watch(self._type, self._namespace, "", resource_version, seconds=TRY_SECONDS)
        try:
            async with contextlib.aclosing(stream):
                async for _ in stream:
                    return
        except Rejected as error:
            self._watches.refused(self.name, error)
            logger.warning("cannot watch %s: %s", self.name, error)

    def _explained(self, error: ApiError) -> str:
        if isinstance(error, Rejected) and error.code == HTTPStatus.NOT_FOUND:
            version = self._type.api_version
            return f"{self._type.plural} of {version} are not installed: apply the CRDs of this release"
        return f"cannot list {self.name}: {error}"
