"""Kopf, and nothing else: it watches our six kinds, and every event goes to a sink.

Kopf runs in a thread and an event loop of its own: at its end it cancels every task of its loop that it does
not know, and in a main thread it would take the signal handlers.
"""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import kopf
from kubernetes.aio.client import Configuration

from finetune_operator.api.kinds import KINDS
from finetune_operator.api.meta import GROUP, VERSION
from finetune_operator.runtime.kindfeed import Sink

logger = logging.getLogger(__name__)

PAGE_SIZE: Final = 100
IDLE_SECONDS: Final = 0.01
"""For which Kopf keeps a task for an object after its event; ours are handed over at once."""
STOP_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 5.0
ROOT: Final = f"/apis/{GROUP}/{VERSION}"
KIND_OF: Final = {kind.plural: kind.name for kind in KINDS}


class NoDifferences(kopf.DiffBaseStorage):
    """Kopf compares each object with what it last was, at the cost of copies; nothing here asks for that."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class WatchSession(kopf.AiohttpSession):
    """A session of our own, equal to others with the same credentials: Kopf tries refused ones only once."""

    aiohttp_session: aiohttp.ClientSession = field(compare=False)
    credentials: kopf.ConnectionInfo


class KopfWatch:
    """Kopf's watch of our kinds.

    Args:
        configuration: how to reach the API server.
        namespaces: what to watch; empty for all.
        sink: where events go.
        listed: called in Kopf's thread with a kind of which Kopf has listed a page, even an empty one, of
            which Kopf tells nothing itself.
        ended: called in Kopf's thread when Kopf ended without being asked; maybe twice.
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
        """Ask Kopf to end, and wait a little; what it still does then harms nobody."""
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
            logger.exception("kopf failed")
        if not self._stop.is_set():
            self._ended()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**_: Any) -> WatchSession:
            return self._session(await _connection(self._configuration))

        async def changed(event: kopf.RawEvent, **_: Any) -> None:
            self._sink(event["type"] or "LISTED", dict(event["object"]))

        async def ending(**_: Any) -> None:
            # At once: with a watch in trouble, what Kopf does from here on may never come to an end.
            if not self._stop.is_set():
                self._ended()

        kopf.on.login(registry=registry)(login)
        kopf.on.cleanup(registry=registry)(ending)
        for kind in KINDS:
            kopf.on.event(GROUP, VERSION, kind.plural, registry=registry)(changed)
        return registry

    def _session(self, credentials: kopf.ConnectionInfo) -> WatchSession:
        """What Kopf would make of the credentials, and lists are noted."""
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
    """The same way to the API server that all other requests take; asked for again when it is refused."""
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
    # What is watched is known, and so is where.
    settings.scanning.disabled = True
    settings.posting.level = logging.WARNING
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.chunk_size = PAGE_SIZE
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.networking.request_timeout = 30
    # By default Kopf gives up after a minute of errors, with one watch all others, and may not even end then.
    settings.networking.error_backoffs = itertools.repeat(RETRY_SECONDS)
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = NoDifferences()
    return settings
