"""`https://HOST/PATH`: one file on a web server; and what all clients on aiohttp have in common."""

import asyncio
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
from finetune_trainer.remote.folder import RemoteFile, RemoteFolder, Stream
from finetune_trainer.remote.limits import CHUNK_BYTES, CONNECT_SECONDS, STALL_SECONDS
from finetune_trainer.remote.origin import origin_of

ERRORS: Final = (aiohttp.ClientError,)
UNNAMED: Final = "rows"
"""What the file behind `https://HOST/?export=rows` is called."""
PARTIAL_CONTENT: Final = 206
RANGE_NOT_SATISFIABLE: Final = 416


def open_web(place: str, credentials: Credentials | None) -> tuple[AbstractFileSystem, str]:
    """The file system, and the file's whole URL."""

    async def get_client(**_: object) -> aiohttp.ClientSession:
        options = await client_options(credentials)
        return aiohttp.ClientSession(**options, middlewares=(_Authorization(credentials),))

    filesystem = HTTPFileSystem(get_client=get_client, skip_instance_cache=True, use_listings_cache=False)
    return filesystem, f"https://{place}"


async def client_options(credentials: Credentials | None) -> dict[str, Any]:
    """What an aiohttp client is made with: time limits and trust."""
    return {
        "connector": aiohttp.TCPConnector(ssl=True if credentials is None else credentials.ssl_context()),
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
        "cookie_jar": aiohttp.DummyCookieJar(),
    }


def look(folder: RemoteFolder) -> RemoteFile:
    """The file behind the URL. Asked for with its first byte: signed URLs are good for GET only."""
    response = _get(folder, {hdrs.RANGE: "bytes=0-0"})
    _close(folder, response)
    if response.status in {PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE}:
        size = response.headers.get(hdrs.CONTENT_RANGE, "").rpartition("/")[2]
    else:
        size = response.headers.get(hdrs.CONTENT_LENGTH, "")
    return RemoteFile(
        name=PurePosixPath(urlsplit(folder.path).path).name or UNNAMED,
        path=folder.path,
        size=int(size) if size.isdecimal() else None,
        version=_version(response),
    )


def open_stream(folder: RemoteFolder, file: RemoteFile, offset: int) -> Stream:
    """The file from `offset` on if it is still the same, else from its beginning."""
    headers: dict[str, str] = {}
    if offset:
        headers = {hdrs.RANGE: f"bytes={offset}-", hdrs.IF_RANGE: file.version}
    response = _get(folder, headers)
    start = offset if response.status == PARTIAL_CONTENT else 0
    return Stream(start, _version(response), _chunks(folder, response))


def _version(response: aiohttp.ClientResponse) -> str:
    return response.headers.get(hdrs.ETAG) or response.headers.get(hdrs.LAST_MODIFIED) or ""


def _get(folder: RemoteFolder, headers: dict[str, str]) -> aiohttp.ClientResponse:
    async def request() -> aiohttp.ClientResponse:
        session: aiohttp.ClientSession = await folder.filesystem.set_session()
        # What arrives is what counts, in bytes: nothing may be packed on the way.
        response = await session.get(folder.path, headers={**headers, hdrs.ACCEPT_ENCODING: "identity"})
        if response.status != RANGE_NOT_SATISFIABLE:
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
