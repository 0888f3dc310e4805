# SPDX-License-Identifier: Apache-2.0
"""`https://HOST/PATH`: one file on a web server, and the options of all aiohttp clients."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs
from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from finetune_trainer.remote.credentials import Credentials
from finetune_trainer.remote.origins import origin_of, require_https
from finetune_trainer.remote.remote_folder import (
    CHUNK_BYTES,
    CONNECT_SECONDS,
    STALL_SECONDS,
    RemoteFile,
    RemoteFolder,
    Stream,
)

ERRORS: Final = (aiohttp.ClientError,)
DEFAULT_FILE_NAME: Final = "rows"
"""Name of a file whose URL has no path, such as `https://HOST/?export=rows`."""
FIRST_BYTE: Final = re.compile(r"bytes (\d+)-")
PARTIAL_CONTENT: Final = 206
RANGE_NOT_SATISFIABLE: Final = 416


def open_web(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """Return the file system, and the whole URL of the file."""

    async def get_client(**_: object) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(**await authorized_options(credentials, url))

    url = f"https://{place}"
    filesystem = HTTPFileSystem(get_client=get_client, skip_instance_cache=True, use_listings_cache=False)
    return filesystem, url


async def authorized_options(credentials: Credentials | None, start: str) -> dict[str, Any]:
    """Return `client_options` with the header Authorization, which is sent to the endpoint only."""
    options = await client_options(credentials, start)
    return {**options, "middlewares": (*options["middlewares"], _Authorization(credentials))}


async def client_options(credentials: Credentials | None, start: str) -> dict[str, Any]:
    """Return aiohttp client options for requests to a URL: time limits, trust, no redirect away from TLS."""
    return {
        "connector": aiohttp.TCPConnector(ssl=True if credentials is None else credentials.ssl_context()),
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
        "cookie_jar": aiohttp.DummyCookieJar(),
        "middlewares": (_StaysProtected(start),),
    }


def stat(folder: RemoteFolder) -> RemoteFile:
    """Describe the file behind the URL. Requests its first byte, because signed URLs allow only GET."""
    # An empty file has no first byte; the response with that error reports the size too.
    response = _get(folder, {hdrs.RANGE: "bytes=0-0"}, accepted_status=RANGE_NOT_SATISFIABLE)
    _close(folder, response)
    if response.status in {PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE}:
        size = response.headers.get(hdrs.CONTENT_RANGE, "").rpartition("/")[2]
    else:
        size = response.headers.get(hdrs.CONTENT_LENGTH, "")
    return RemoteFile(
        name=PurePosixPath(urlsplit(folder.path).path).name or DEFAULT_FILE_NAME,
        path=folder.path,
        size_bytes=int(size) if size.isdecimal() else None,
        version=_version(response),
    )


def open_stream(folder: RemoteFolder, file: RemoteFile, offset: int) -> Stream:
    """Open the file at `offset` if it is unchanged, else at its beginning.

    Raises ClientPayloadError if a broken connection would look like the end of the file.
    """
    headers: dict[str, str] = {}
    if offset:
        headers = {hdrs.RANGE: f"bytes={offset}-", hdrs.IF_RANGE: file.version}
    response = _get(folder, headers)
    start = _start(response)
    if start not in {0, offset}:
        _close(folder, response)
        raise aiohttp.ClientPayloadError(f"the server sent bytes from {start}, not from {offset}")
    if file.size_bytes is None and not _has_end(response):
        _close(folder, response)
        raise aiohttp.ClientPayloadError(
            "the server reports neither the size nor the end of the file; it must send Content-Length or"
            " Transfer-Encoding: chunked"
        )
    return Stream(start, _version(response), _chunks(folder, response))


def _start(response: aiohttp.ClientResponse) -> int:
    """Return the offset at which a response starts."""
    found = FIRST_BYTE.match(response.headers.get(hdrs.CONTENT_RANGE, ""))
    return int(found[1]) if response.status == PARTIAL_CONTENT and found else 0


def _has_end(response: aiohttp.ClientResponse) -> bool:
    chunked = response.headers.get(hdrs.TRANSFER_ENCODING, "").lower() == "chunked"
    return chunked or hdrs.CONTENT_LENGTH in response.headers


def _version(response: aiohttp.ClientResponse) -> str:
    return response.headers.get(hdrs.ETAG) or response.headers.get(hdrs.LAST_MODIFIED) or ""


def _get(
    folder: RemoteFolder, headers: dict[str, str], accepted_status: int | None = None
) -> aiohttp.ClientResponse:
    async def request() -> aiohttp.ClientResponse:
        session: aiohttp.ClientSession = await folder.filesystem.set_session()
        # Offsets count the bytes that arrive, so the content must not be compressed in transit.
        response = await session.get(folder.path, headers={**headers, hdrs.ACCEPT_ENCODING: "identity"})
        if response.status != accepted_status:
            response.raise_for_status()
        return response

    response: aiohttp.ClientResponse = sync(folder.filesystem.loop, request)
    return response


def _chunks(folder: RemoteFolder, response: aiohttp.ClientResponse) -> Iterator[bytes]:
    try:
        while chunk := sync(folder.filesystem.loop, response.content.read, CHUNK_BYTES):
            yield chunk
    finally:
        _close(folder, response)


def _close(folder: RemoteFolder, response: aiohttp.ClientResponse) -> None:
    loop: asyncio.AbstractEventLoop = folder.filesystem.loop
    loop.call_soon_threadsafe(response.close)


class _StaysProtected:
    """Middleware that refuses redirects from https to http. aiohttp calls it for every redirect."""

    def __init__(self, start: str) -> None:
        self._start = start

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        require_https(self._start, str(request.url))
        return await handler(request)


class _Authorization:
    """Middleware that sends credentials to the endpoint only. aiohttp calls it for every redirect."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._origin = None if credentials is None else origin_of(credentials.endpoint)
        self._header = None if credentials is None else credentials.authorization

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._header is not None and origin_of(str(request.url)) == self._origin:
            request.headers[hdrs.AUTHORIZATION] = self._header
        return await handler(request)
