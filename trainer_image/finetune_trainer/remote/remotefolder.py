"""A remote folder, its files and what is read of them: what all parts of this package speak of."""

from collections.abc import Iterator
from dataclasses import dataclass

from fsspec import AbstractFileSystem


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder or file on a remote file system; `path` is how `filesystem` calls it."""

    filesystem: AbstractFileSystem
    path: str
    uri: str
    errors: tuple[type[Exception], ...]
    """What its client raises beside OSError."""
    endpoint: str
    """The server that is asked; empty where its client knows one."""

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as it was when it was listed."""

    name: str
    path: str
    """How the file system calls it."""
    size_bytes: int | None
    """In bytes; None where the server does not say."""
    version: str
    """Changes with the content; empty where the server tells nothing of the kind."""
    modified: str = ""
    """When it was written last, in the server's words; empty where it does not say."""
    sha256: str | None = None
    """Where the server knows it, as 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A file's content from byte `start` on, which is 0 where the server cannot begin elsewhere."""

    start: int
    version: str
    """Of what is read, as in `RemoteFile`."""
    chunks: Iterator[bytes]
