# SPDX-License-Identifier: Apache-2.0
"""A proxy between one operator and the API server that names every request and disturbs one of them.

It uses plain HTTP on loopback to the operator, and HTTPS with a client certificate to the API server.
"""

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from kubernetes import client, config

from tests.faults.faults import Disturbance, Fault, LostEvent, is_stale
from tests.faults.requests import CHILDREN, Request, event_identity
from tests.integration.api import Object

REQUEST_HEADERS: Final = ("Accept", "Content-Type", "User-Agent")
"""Headers that are forwarded to the API server."""
RESPONSE_HEADERS: Final = ("Content-Type", "Retry-After")
"""Headers that are forwarded to the operator."""
RST: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket that closes with a reset."""
RETRY_AFTER_SECONDS: Final = 1


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def response(self) -> web.Response:
        return web.Response(status=self.status, body=self.body, headers=self.headers)


class Proxy:
    """The API server for one operator.

    Args:
        kubeconfig: kubeconfig of the user for forwarded requests.
        disturbance: the disturbance, which happens once; None to forward everything.
        kill: kills the operator at once.

    Attributes:
        writes: identities of mutating requests in the order of their arrival; the second with the same
            identity ends with ` #2`.
        changes: number of times that the API server created and deleted each object.
        last_write: monotonic time of the last write, without renewals of the Lease.
        is_killed: whether the operator was killed and has not acquired the Lease again.
        events: identities of watch events in the order in which they were forwarded or withheld.
        happened: set when the disturbance has happened.
    """

    def __init__(self, kubeconfig: Path, disturbance: Disturbance | None, kill: Callable[[], None]) -> None:
        self.writes: list[str] = []
        self.changes: Counter[str] = Counter()
        self.last_write = time.monotonic()
        self.is_killed = False
        self.events: list[str] = []
        self.happened = threading.Event()
        self._configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=self._configuration)
        self._disturbance = disturbance
        self._kill = kill
        self._seen: Counter[str] = Counter()
        self._first_lists: dict[tuple[str, str], Answer] = {}
        self._stale: dict[tuple[str, str], Answer] = {}
        self._watches: dict[asyncio.Task[None], web.StreamResponse] = {}
        self._sending: set[asyncio.Task[Answer]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        tls = ssl.create_default_context(cafile=self._configuration.ssl_ca_cert)
        tls.load_cert_chain(str(self._configuration.cert_file), self._configuration.key_file)
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        async with aiohttp.ClientSession(
            self._configuration.host, connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        ) as self._upstream:
            application = web.Application(client_max_size=2**24)
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(
                application, handler_cancellation=True, access_log=None, shutdown_timeout=0
            )
            await runner.setup()
            await web.SockSite(runner, self._listener).start()
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        request = Request.of(incoming.method, incoming.raw_path, await incoming.read())
        headers = {name: incoming.headers[name] for name in REQUEST_HEADERS if name in incoming.headers}
        if request.watches:
            return await self._watch(incoming, request, headers)
        if request.lists:
            return (await self._list(request, headers)).response()
        if not request.mutates:
            return (await self._forward(request, headers)).response()
        fault = self._fault_for(request)
        if fault is None:
            return (await self._forward(request, headers)).response()
        answer = await self._disturb(fault, request, headers)
        if answer is None:
            _reset(incoming)
            return web.Response()
        return answer.response()

    def _fault_for(self, request: Request) -> Fault | None:
        if request.resource != "leases" or self.is_killed:
            self.last_write = time.monotonic()
        if request.resource == "leases":
            self.is_killed = False
        self._seen[request.identity] += 1
        number = self._seen[request.identity]
        name = request.identity if number == 1 else f"{request.identity} #{number}"
        self.writes.append(name)
        disturbance = self._disturbance
        if isinstance(disturbance, LostEvent) or disturbance is None or disturbance.request != name:
            return None
        if not is_stale(disturbance.fault):
            self.happened.set()
        return disturbance.fault

    async def _disturb(self, fault: Fault, request: Request, headers: dict[str, str]) -> Answer | None:
        """The answer for the operator; None for a broken connection."""
        match fault:
            case Fault.CONFLICT:
                return _refusal(HTTPStatus.CONFLICT, "Conflict")
            case Fault.TOO_MANY:
                return _refusal(HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequests")
            case Fault.INTERNAL:
                return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError")
            case Fault.EXPIRED:
                await self._expire()
                return await self._forward(request, headers)
            case Fault.KILLED_BEFORE:
                self._kill_operator()
                return None
        await self._forward(request, headers)
        match fault:
            case Fault.TIMEOUT:
                return _refusal(HTTPStatus.GATEWAY_TIMEOUT, "Timeout")
            case Fault.STALE_CHILDREN:
                self._stale = {key: each for key, each in self._first_lists.items() if _of_children(key[0])}
            case Fault.STALE_KINDS:
                self._stale = {
                    key: each for key, each in self._first_lists.items() if not _of_children(key[0])
                }
        if fault is not Fault.RESET:
            self._kill_operator()
        return None

    def _kill_operator(self) -> None:
        self._kill()
        self.is_killed = True

    async def _forward(self, request: Request, headers: dict[str, str]) -> Answer:
        """Forward the request, and complete it even if the operator ends meanwhile."""
        sending = asyncio.create_task(self._send(request, headers))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        return await asyncio.shield(sending)

    async def _send(self, request: Request, headers: dict[str, str]) -> Answer:
        async with self._upstream.request(
            request.method, request.path, data=request.sent or None, headers=headers
        ) as answer:
            kept = {name: answer.headers[name] for name in RESPONSE_HEADERS if name in answer.headers}
            read = Answer(answer.status, await answer.read(), kept)
        if answer.ok and request.method in {"POST", "DELETE"} and request.resource != "events":
            self.changes[request.identity] += 1
        return read

    async def _list(self, request: Request, headers: dict[str, str]) -> Answer:
        key = (request.path, headers.get("User-Agent", ""))
        stale = self._stale.pop(key, None)
        if stale is not None:
            self.happened.set()
            return stale
        answer = await self._forward(request, headers)
        if answer.status == HTTPStatus.OK:
            self._first_lists.setdefault(key, answer)
        return answer

    async def _watch(
        self, incoming: web.Request, request: Request, headers: dict[str, str]
    ) -> web.StreamResponse:
        async with self._upstream.get(request.path, headers=headers) as stream:
            response = web.StreamResponse(status=stream.status)
            response.content_type = stream.content_type
            await response.prepare(incoming)
            pump = asyncio.create_task(self._pump(request, stream, response))
            self._watches[pump] = response
            try:
                await asyncio.wait({pump})
            finally:
                del self._watches[pump]
                pump.cancel()
        return response

    async def _pump(
        self, request: Request, stream: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        async for line in _lines(stream):
            if self._withholds(request, line):
                continue
            await response.write(line)

    def _withholds(self, request: Request, line: bytes) -> bool:
        event: Object = json.loads(line)
        if event["type"] in {"BOOKMARK", "ERROR"}:
            return False
        identity = event_identity(request.resource, event)
        self.events.append(identity)
        lost = isinstance(self._disturbance, LostEvent) and self._disturbance.event == identity
        if lost:
            self.happened.set()
        return lost

    async def _expire(self) -> None:
        """End all watches as the API server does after their history was compacted."""
        gone = {"type": "ERROR", "object": json.loads(_refusal(HTTPStatus.GONE, "Expired").body)}
        for pump, response in list(self._watches.items()):
            pump.cancel()
            await response.write(json.dumps(gone).encode() + b"\n")


def _refusal(code: HTTPStatus, reason: str) -> Answer:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"the fault proxy answers {code}",
        "reason": reason,
        "code": code,
    }
    headers = {"Content-Type": "application/json"}
    if code == HTTPStatus.TOO_MANY_REQUESTS:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Answer(code, json.dumps(status).encode(), headers)


def _reset(incoming: web.Request) -> None:
    transport = incoming.transport
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        transport.abort()


def _of_children(path: str) -> bool:
    return Request.of("GET", path, b"").resource in CHILDREN


async def _lines(stream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in stream.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
