# SPDX-License-Identifier: Apache-2.0
"""A web server for a few files, which records its requests and can fail on demand."""

import hashlib
import re
import ssl
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal, Self

from finetune_trainer.contract.references import SecretMount
from tools.cluster.credentials import Authority

RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")

Fault = int | Literal["cut", "stall"]
"""Failure of a request: this status, a response that breaks off, or no response."""


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    authorization: str | None
    range: str | None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Response to requests for a path."""

    body: bytes = b""
    status: int = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = ()
    reason: str | None = None
    """Reason phrase after the status; None for the default."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Print nothing about clients that go away."""


class WebServer:
    """Serves `files` on a port of `address`, with TLS if it has an authority."""

    def __init__(self, authority: Authority | None = None, address: str = "127.0.0.1") -> None:
        self._address = address
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.authorization: str | None = None
        """Required value of the header Authorization."""
        self.knows_ranges = True
        self.tells_length = True
        """Without the length, the end of the connection is the end of the response."""
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self._ended = threading.Event()
        self._server = _Server((address, 0), self._handler())
        self._server.daemon_threads = True
        self._scheme = "http" if authority is None else "https"
        if authority is not None:
            self._server.socket = _context(authority).wrap_socket(self._server.socket, server_side=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def host(self) -> str:
        return f"{self._address}:{self.port}"

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://{self.host}"

    def secret(self, folder: Path, **keys: str) -> SecretMount:
        """Create a credentials Secret for this server, as mounted in a pod, with `endpoint` if not given."""
        folder.mkdir(parents=True, exist_ok=True)
        has_endpoint = any("ENDPOINT" in key or "CONNECTION" in key for key in keys)
        for key, value in {**({} if has_endpoint else {"endpoint": self.endpoint}), **keys}.items():
            (folder / key).write_text(value)
        return SecretMount(name="credentials", path=str(folder))

    def downloads(self, path: str) -> list[str | None]:
        """Return the ranges of the requests for a path, except its first byte."""
        return [
            seen.range
            for seen in self.seen
            if seen.method == "GET" and seen.path.partition("?")[0] == path and seen.range != "bytes=0-0"
        ]

    def answer(self, asked: Seen) -> Answer:
        """Build the response to a request, without ranges."""
        if asked.path in self.redirects:
            return Answer(status=HTTPStatus.FOUND, headers=(("Location", self.redirects[asked.path]),))
        content = self.files.get(asked.path.partition("?")[0])
        if content is None:
            return Answer(status=HTTPStatus.NOT_FOUND)
        return Answer(content, headers=(("ETag", f'"{hashlib.sha256(content).hexdigest()}"'),))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
                pass

            def do_GET(self) -> None:
                server._serve(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        headers = handler.headers
        body = handler.rfile.read(int(headers.get("Content-Length") or 0))
        asked = Seen(
            handler.command,
            handler.path,
            headers.get("Authorization"),
            headers.get("Range") or headers.get("x-ms-range"),
            body,
            dict(headers),
        )
        self.seen.append(asked)
        fault = self.faults.popleft() if self.faults else None
        if fault == "stall":
            self._ended.wait()
            handler.close_connection = True
            return
        if isinstance(fault, int):
            answer = Answer(status=fault)
        elif self.authorization not in {None, asked.authorization}:
            answer = Answer(status=HTTPStatus.UNAUTHORIZED)
        else:
            answer = self.answer(asked)
            if answer.status == HTTPStatus.OK and self.knows_ranges:
                answer = _part(answer, asked.range, headers.get("If-Range"))
        handler.send_response(answer.status, answer.reason)
        length = (("Content-Length", str(len(answer.body))),) if self.tells_length else ()
        for name, value in (*answer.headers, *length):
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body[: len(answer.body) // 2] if fault == "cut" else answer.body)
        handler.close_connection = fault == "cut" or not self.tells_length


def _part(answer: Answer, wanted: str | None, only_if: str | None) -> Answer:
    found = RANGE.fullmatch(wanted or "")
    if found is None or only_if not in {None, dict(answer.headers).get("ETag")}:
        return answer
    total, start = len(answer.body), int(found[1])
    if start >= total:
        range_header = ("Content-Range", f"bytes */{total}")
        return Answer(
            status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=(*answer.headers, range_header)
        )
    end = min(int(found[2] or total - 1), total - 1)
    return Answer(
        answer.body[start : end + 1],
        HTTPStatus.PARTIAL_CONTENT,
        (*answer.headers, ("Content-Range", f"bytes {start}-{end}/{total}")),
    )


def _context(authority: Authority) -> ssl.SSLContext:
    authority.write("web", authority.issue("web", hosts=["127.0.0.1", "localhost"]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.directory / "web.crt", authority.directory / "web.key")
    return context
