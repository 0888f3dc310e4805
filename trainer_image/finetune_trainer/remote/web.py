"""`https://HOST/PATH`: one file on a web server; and what all clients on aiohttp have in common."""

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
from finetune_trainer.remote.limits import CHUNK_BYTES, CONNECT_SECONDS, STALL_SECONDS
from finetune_trainer.remote.origin import origin_of, require_https
from finetune_trainer.remote.remotefolder import RemoteFile, RemoteFolder, Stream

ERRORS: Final = (aiohttp.ClientError,)
DEFAULT_FILE_NAME: Final = "rows"
"""What the file behind `https://HOST/?export=rows` is called."""
FIRST_BYTE: Final = re.compile(r"bytes (\d+)-")
PARTIAL_CONTENT: Final = 206
RANGE_NOT_SATISFIABLE: Final = 416


def open_web(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """The file system, and the file's whole URL."""

    async def get_client(**_: object) -> aiohttp.ClientSession:
        options = await client_options(credentials, url)
        options["middlewares"] = (*options["middlewares"], _Authorization(credentials))
        return aiohttp.ClientSession(**options)

    url = f"https://{place}"
    filesystem = HTTPFileSystem(get_client=get_client, skip_instance_cache=True, use_listings_cache=False)
    return filesystem, url


async def client_options(credentials: Credentials | None, start: str) -> dict[str, Any]:
    """What an aiohttp client is made with that begins at a URL: time limits, trust, and no way out of TLS."""
    return {
        "connector": aiohttp.TCPConnector(ssl=True if credentials is None else credentials.ssl_context()),
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
        "cookie_jar": aiohttp.DummyCookieJar(),
        "middlewares": (_StaysProtected(start),),
    }


def stat(folder: RemoteFolder) -> RemoteFile:
    """The file behind the URL. Asked for with its first byte: signed URLs are good for GET only."""
    # An empty file has no first byte, and the answer that says so says its size.
    response = _get(folder, {hdrs.RANGE: "bytes=0-0"}, good=RANGE_NOT_SATISFIABLE)
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
    """The file from `offset` on if it is still the same, else from its beginning.

    Raises ClientPayloadError where a broken connection would look like the end of the file.
    """
    headers: dict[str, str] = {}
    if offset:
        headers = {hdrs.RANGE: f"bytes={offset}-", hdrs.IF_RANGE: file.version}
    response = _get(folder, headers)
    start = _start(response)
    if start not in {0, offset}:
        _close(folder, response)
        raise aiohttp.ClientPayloadError(f"the server sent bytes from {start} on, not from {offset} on")
    if file.size_bytes is None and not _tells_its_end(response):
        _close(folder, response)
        raise aiohttp.ClientPayloadError(
            "the server says neither how long the file is nor where it ends; it must send Content-Length, or"
            " Transfer-Encoding: chunked"
        )
    return Stream(start, _version(response), _chunks(folder, response))


def _start(response: aiohttp.ClientResponse) -> int:
    """The first byte of the file that an answer has."""
    found = FIRST_BYTE.match(response.headers.get(hdrs.CONTENT_RANGE, ""))
    return int(found[1]) if response.status == PARTIAL_CONTENT and found else 0


def _tells_its_end(response: aiohttp.ClientResponse) -> bool:
    chunked = response.headers.get(hdrs.TRANSFER_ENCODING, "").lower() == "chunked"
    return chunked or hdrs.CONTENT_LENGTH in response.headers


def _version(response: aiohttp.ClientResponse) -> str:
    return response.headers.get(hdrs.ETAG) or response.headers.get(hdrs.LAST_MODIFIED) or ""


def _get(folder: RemoteFolder, headers: dict[str, str], good: int | None = None) -> aiohttp.ClientResponse:
    async def request() -> aiohttp.ClientResponse:
        session: aiohttp.ClientSession = await folder.filesystem.set_session()
        # What arrives is what counts, in bytes: nothing may be packed on the way.
        response = await session.get(folder.path, headers={**headers, hdrs.ACCEPT_ENCODING: "identity"})
        if response.status != good:
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
    """Refuses to be led from https to http; it is asked anew after every redirect."""

    def __init__(self, start: str) -> None:
        self._start = start

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        require_https(self._start, str(request.url))
        return await handler(request)


class _Authorization:
    """Proves who asks to the endpoint, and to nobody else: it is asked anew after every redirect."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._origin = None if credentials is None else origin_of(credentials.endpoint)
        self._header = None if credentials is None else credentials.authorization

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._header is not None and origin_of(str(request.url)) == self._origin:
            request.headers[hdrs.AUTHORIZATION] = self._header
        return await handler(request)
