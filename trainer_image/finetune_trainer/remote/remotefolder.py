# SPDX-License-Identifier: Apache-2.0
"""Types that this package shares: a remote folder, its files, and their content."""

from collections.abc import Iterator
from dataclasses import dataclass

from fsspec import AbstractFileSystem


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
