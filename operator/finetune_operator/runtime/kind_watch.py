# SPDX-License-Identifier: Apache-2.0
"""Kopf's watch of the operator's kinds, and the lists that repair what it misses.

Kopf runs in a thread with an event loop of its own, and sends every event to a sink. At its end it cancels
every task of its loop that it does not know, and in the main thread it would replace the signal handlers.
"""

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol

import aiohttp
import kopf
from kubernetes.aio.client import Configuration

from finetune_operator.api.crd import KINDS
from finetune_operator.api.meta import GROUP, VERSION
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import version
from finetune_operator.engine.watches import RELIST_SECONDS, Sweeper, Watches, watch_name
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.indexes import namespace_of
from finetune_operator.runtime.caches import KIND_TYPES, Caches

logger = logging.getLogger(__name__)

QUIET_SECONDS: Final = 5.0
"""Time without another listed object of a kind after which Kopf's list counts as complete."""
FIRST_RESTART_SECONDS: Final = 1.0
MAX_RESTART_SECONDS: Final = 60.0
"""Delays before Kopf is restarted, doubled each time that it ends early."""
FIRST_LIST_SECONDS: Final = 10.0
MAX_LIST_SECONDS: Final = 300.0
"""Times within which Kopf must list every kind, or it is restarted; doubled each time."""

Sink = Callable[[str, Manifest], None]
"""Called in the watch's thread with the type of an event (`LISTED`, or that of a watch) and the object."""


class Watch(Protocol):
    """A watch of all the operator's kinds, in a thread of its own."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """Stop the watch, and wait a short time for its end."""


MakeWatch = Callable[[Sink, Callable[[str], None], Callable[[], None]], Watch]
"""Creates a watch from a sink and two callbacks, which it calls in its thread: one with each kind that it has
listed, and one when it ended without `stop`."""


class KindFeed:
    """Feeds the stores of the operator's kinds.

    Kopf's watch is restarted in three cases:

    - It ended.
    - etcd was restored: the API server sends no events before it reaches the requested version again.
    - It did not list every kind: Kopf discovers the resources once, and an API server that has just started
      may not have the operator's kinds yet.

    After a gap Kopf lists again, and a list reports no deletions. If a stored object was not listed, a
    sweeper finds the deletions. An empty list sends no object to the sink, so lists are reported separately.

    Args:
        cluster: client for the lists.
        caches: caches to feed.
        watches: records which watches are alive.
        namespaces: namespaces to watch; empty: all.
        make_watch: creates Kopf's watch.
        relist_seconds: seconds between two lists of each kind.
    """

    def __init__(
        self,
        cluster: KubernetesClient,
        caches: Caches,
        watches: Watches,
        namespaces: Collection[str],
        make_watch: MakeWatch,
        *,
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self._caches = caches
        self._watches = watches
        self._namespaces = namespaces
        self._make_watch = make_watch
        self._loop = asyncio.get_running_loop()
        self._watch: Watch | None = None
        self._started_at = 0.0
        self._restart_seconds = FIRST_RESTART_SECONDS
        self._restart: asyncio.TimerHandle | None = None
        self._unlisted: set[str] = set()
        self._list_seconds = FIRST_LIST_SECONDS
        self._list_check: asyncio.TimerHandle | None = None
        self._listed: dict[str, set[str]] = {}
        self._new_listed: deque[tuple[str, str, str]] = deque()
        """Kind, uid and watch of listed objects that the loop has not taken yet. Kopf's thread adds them."""
        self._is_noting = False
        self._quiet: dict[str, asyncio.TimerHandle] = {}
        self.sweepers: dict[str, list[Sweeper]] = {
            kind: [
                Sweeper(
                    cluster,
                    type_,
                    caches.kinds[kind],
                    watches,
                    namespace=namespace,
                    period_seconds=relist_seconds,
                )
                for namespace in (namespaces if type_.namespaced else ()) or ("",)
            ]
            for kind, type_ in KIND_TYPES.items()
        }

    def __iter__(self) -> Iterator[Sweeper]:
        for sweepers in self.sweepers.values():
            yield from sweepers

    def start(self) -> None:
        """Start the watch, after the sweepers have filled the caches."""
        self._restart = None
        self._started_at = self._loop.time()
        self._unlisted = set(KIND_TYPES)
        watch = self._watch = self._make_watch(self._sink, self._listed_kind, lambda: self._ended(watch))
        self._list_check = self._loop.call_later(self._list_seconds, self._check_lists)
        watch.start()

    async def stop(self) -> None:
        """Stop the watch."""
        for timer in (*self._quiet.values(), self._restart, self._list_check):
            if timer is not None:
                timer.cancel()
        watch, self._watch = self._watch, None
        if watch is not None:
            await asyncio.to_thread(watch.stop)

    def restart_after_restore(self) -> None:
        """List all kinds and restart the watch after a restore of etcd."""
        for sweeper in self:
            sweeper.request()
        if self._watch is not None:
            self._start_again(0.0)

    def _ended(self, watch: Watch) -> None:
        self._loop.call_soon_threadsafe(self._take_end, watch)

    def _take_end(self, watch: Watch) -> None:
        if watch is not self._watch:
            return
        if self._loop.time() - self._started_at > MAX_RESTART_SECONDS:
            self._restart_seconds = FIRST_RESTART_SECONDS
        logger.error("Kopf's watches ended; restarting them in %.0f s", self._restart_seconds)
        self._start_again(self._restart_seconds)
        self._restart_seconds = min(MAX_RESTART_SECONDS, 2 * self._restart_seconds)

    def _check_lists(self) -> None:
        if not self._unlisted:
            self._list_seconds = FIRST_LIST_SECONDS
            return
        kinds = ", ".join(sorted(self._unlisted))
        logger.warning("Kopf has not listed %s in %.0f s; restarting it", kinds, self._list_seconds)
        self._list_seconds = min(MAX_LIST_SECONDS, 2 * self._list_seconds)
        self._start_again(0.0)

    def _start_again(self, after: float) -> None:
        if self._list_check is not None:
            self._list_check.cancel()
        old, self._watch = self._watch, None
        if old is not None:
            # Events that it still sends are as valid as those of the next watch.
            self._loop.run_in_executor(None, old.stop)
        if self._restart is None:
            self._restart = self._loop.call_later(after, self.start)

    def _listed_kind(self, kind: str) -> None:
        """Runs in the watch's thread."""
        self._loop.call_soon_threadsafe(self._note_list, kind)

    def _sink(self, event: str, obj: Manifest) -> None:
        """Runs in the watch's thread: pass only new states to the event loop."""
        metadata = obj["metadata"]
        if event == "LISTED":
            self._new_listed.append((obj["kind"], metadata["uid"], self._watch_of(obj)))
            if not self._is_noting:
                # Once for all objects that are listed until the loop takes them: a history has thousands.
                self._is_noting = True
                self._loop.call_soon_threadsafe(self._note_listed)
            store = self._caches.kinds[obj["kind"]]
            if store.version_of(metadata.get("namespace", ""), metadata["name"]) == version(obj):
                return
        self._loop.call_soon_threadsafe(self._take, event, obj)

    def _take(self, event: str, obj: Manifest) -> None:
        store = self._caches.kinds[obj["kind"]]
        self._watches.beat(self._watch_of(obj))
        if event == "DELETED":
            store.remove(obj)
        else:
            store.put(obj)

    def _note_listed(self) -> None:
        self._is_noting = False
        listed = [self._new_listed.popleft() for _ in range(len(self._new_listed))]
        for watch in {watch for _, _, watch in listed}:
            self._watches.beat(watch)
        for kind in {kind for kind, _, _ in listed}:
            self._note_list(kind)
        for kind, uid, _ in listed:
            self._listed[kind].add(uid)

    def _note_list(self, kind: str) -> None:
        self._unlisted.discard(kind)
        self._listed.setdefault(kind, set())
        if kind in self._quiet:
            self._quiet[kind].cancel()
        self._quiet[kind] = self._loop.call_later(QUIET_SECONDS, self._sweep_gap, kind)

    def _sweep_gap(self, kind: str) -> None:
        """Request lists if a stored object was not listed: it is new, or was deleted during a gap."""
        listed = self._listed.pop(kind)
        del self._quiet[kind]
        if not listed.issuperset(self._caches.kinds[kind].uids()):
            for sweeper in self.sweepers[kind]:
                sweeper.request()

    def _watch_of(self, obj: Manifest) -> str:
        namespace = namespace_of(obj) if self._namespaces else ""
        return watch_name(KIND_TYPES[obj["kind"]].plural, namespace)


PAGE_SIZE: Final = 25
"""Objects per page of Kopf's lists. It lists all kinds at once, and an annotation may have 256 KiB."""
IDLE_SECONDS: Final = 0.01
"""Time that Kopf keeps a task for an object after its event. The sink takes events at once."""
STOP_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 5.0
ROOT: Final = f"/apis/{GROUP}/{VERSION}"
KIND_OF: Final = {kind.plural: kind.name for kind in KINDS}


class NoDifferences(kopf.DiffBaseStorage):
    """Turns off Kopf's unused comparison of each object with its last state, which copies objects."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class WatchSession(kopf.AiohttpSession):
    """Session with equality by credentials, because Kopf does not try refused credentials again."""

    aiohttp_session: aiohttp.ClientSession = field(compare=False)
    credentials: kopf.ConnectionInfo


class KopfWatch:
    """Kopf's watch of the operator's kinds.

    Args:
        configuration: configuration of the client.
        namespaces: namespaces to watch; empty: all.
        sink: receives the events.
        listed: called in Kopf's thread with the kind of every listed page. Kopf itself does not report empty
            pages.
        ended: called in Kopf's thread when Kopf ended without `stop`, possibly twice.
    """

    def __init__(
        self,
        configuration: Configuration,
        namespaces: Collection[str],
        sink: Sink,
        listed: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        self._configuration = configuration
        self._namespaces = namespaces
        self._sink = sink
        self._listed = listed
        self._ended = ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop Kopf, and wait a short time for its end. What it still does later is harmless."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=self._registry(),
                    settings=_settings(),
                    standalone=True,
                    clusterwide=not self._namespaces,
                    namespaces=tuple(self._namespaces),
                    stop_flag=self._stop,
                )
            )
        except Exception:
            logger.exception("Kopf failed")
        if not self._stop.is_set():
            self._ended()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**_: Any) -> WatchSession:
            return self._session(await _connection(self._configuration))

        async def changed(event: kopf.RawEvent, **_: Any) -> None:
            self._sink(event["type"] or "LISTED", dict(event["object"]))

        async def ending(**_: Any) -> None:
            # At once, because after a failed watch Kopf's shutdown may never end.
            if not self._stop.is_set():
                self._ended()

        kopf.on.login(registry=registry)(login)
        kopf.on.cleanup(registry=registry)(ending)
        for kind in KINDS:
            kopf.on.event(GROUP, VERSION, kind.plural, registry=registry)(changed)
        return registry

    def _session(self, credentials: kopf.ConnectionInfo) -> WatchSession:
        """The session that Kopf would create from the credentials, which also reports lists."""
        traced = aiohttp.TraceConfig()
        traced.on_request_end.append(self._note_list)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=credentials.as_ssl_context()),
            headers=credentials.as_http_headers(),
            proxy=credentials.proxy_url,
            trace_configs=[traced],
        )
        return WatchSession(server=credentials.server, aiohttp_session=session, credentials=credentials)

    async def _note_list(
        self, _session: aiohttp.ClientSession, _context: object, request: aiohttp.TraceRequestEndParams
    ) -> None:
        root, _, plural = request.url.path.rpartition("/")
        is_list = request.method == "GET" and "watch" not in request.url.query
        if (
            is_list
            and root.startswith(ROOT)
            and plural in KIND_OF
            and request.response.status == HTTPStatus.OK
        ):
            self._listed(KIND_OF[plural])


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Connection data from the client's configuration. Kopf requests it again after a refusal."""
    token = await configuration.get_api_key_with_prefix("BearerToken")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
        scheme="Bearer" if token else None,
        token=token.partition(" ")[2] if token else None,
    )


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # The watched resources and namespaces are known in advance.
    settings.scanning.disabled = True
    settings.posting.level = logging.WARNING
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.chunk_size = PAGE_SIZE
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.networking.request_timeout = 30
    # By default Kopf ends all watches after a minute of errors of one, and may then not terminate.
    settings.networking.error_backoffs = itertools.repeat(RETRY_SECONDS)
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = NoDifferences()
    return settings
