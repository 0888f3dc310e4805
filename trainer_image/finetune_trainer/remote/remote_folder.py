# SPDX-License-Identifier: Apache-2.0
"""A remote folder and its files, as all of this package reads them, and the limits of reading.

The limits of time and size are fixed, so that a stage fails with a message of its own and not by its
deadline.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fsspec import AbstractFileSystem

CONNECT_SECONDS: Final = 30.0
STALL_SECONDS: Final = 60.0
"""Max time without data within a response."""
CHUNK_BYTES: Final = 16 << 20
"""Size of one request. A broken connection loses at most this."""
REQUESTS_AHEAD: Final = 4
"""Concurrent requests per file. A small pod can hold this many chunks in memory."""
MAX_ATTEMPTS: Final = 7
"""Max attempts per request."""
MAX_PAUSE_SECONDS: Final = 30.0
"""Max pause between two attempts. The first pause is 1 s, and each is twice the previous one."""
MAX_SOURCE_BYTES: Final = 16 << 30
"""Max size of a source of rows. The pod's own volume holds it while it is read."""
MAX_MODEL_BYTES: Final = 4 << 40
"""Max size of a base model."""
MAX_FILES: Final = 10_000
"""Max files in one folder. Each costs several requests."""
MAX_DOWNLOAD_SECONDS: Final = 24 * 3600.0
"""Max duration of the download of a source or base model by one pod."""


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder or file on a remote file system; `path` is its name in `filesystem`."""

    filesystem: AbstractFileSystem
    path: str
    uri: str
    errors: tuple[type[Exception], ...]
    """Exceptions of its client in addition to OSError."""
    endpoint: str
    """Server that gets the requests; empty for the client's default."""

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as of its listing."""

    name: str
    path: str
    """Name in the file system."""
    size_bytes: int | None
    """None if the server does not report it."""
    version: str
    """Changes with the content; empty if the server reports no version."""
    modified: str = ""
    """Modification time in the server's format; empty if the server does not report it."""
    sha256: str | None = None
    """64 hexadecimal digits; None if the server does not report them."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Content of a file from byte `start`, which is 0 if the server does not support ranges."""

    start: int
    version: str
    """Version of this content, as in `RemoteFile`."""
    chunks: Iterator[bytes]
