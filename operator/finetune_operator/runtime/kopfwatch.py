# SPDX-License-Identifier: Apache-2.0
"""Kopf's watch of the operator's kinds: it sends every event to a sink.

Kopf runs in a thread with an event loop of its own. At its end it cancels every task of its loop that it does
not know, and in the main thread it would replace the signal handlers.
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

from finetune_operator.api.crd import KINDS
from finetune_operator.api.meta import GROUP, VERSION
from finetune_operator.runtime.kindfeed import Sink

logger = logging.getLogger(__name__)

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
