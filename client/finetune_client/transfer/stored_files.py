# SPDX-License-Identifier: Apache-2.0
"""Files below one folder: their operations, and a server of these on standard input and output.

A pod runs this file's source, which has nothing but the standard library, so that any image with Python can
serve files. A request and its answer are lines of JSON. Content follows its line in frames: four bytes with
the length, then the bytes. A frame of length 0 ends the content, and FAILED announces an error instead.
"""

import errno
import hashlib
import json
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 1 << 18
ALIVE_BYTES = 1 << 26
"""Hashed bytes after which the server shows that it still works."""
LENGTH = struct.Struct("!I")
FAILED = 0xFFFFFFFF

OnBytes = Callable[[int], None]
"""Called with the number of bytes of each chunk."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class StoredFilesError(Exception):
    """An operation failed where the files are; a repetition would fail in the same way."""


class StoredFiles:
    """Files below a folder of this machine. A symbolic link is followed as long as it stays below it.

    All paths are relative, with `/`. All methods raise StoredFilesError, whose message names the path.
    """

    resumes = True
    """Whether a file can be continued where it ends."""

    def __init__(self, root: str) -> None:
        self._root = Path(root).resolve()

    def size(self, path: str) -> int | None:
        """Size of a regular file in bytes; None if nothing has this path."""
        try:
            found = self._real(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failure(path, error) from error
        _check_regular(path, found)
        return found.st_size

    def exists(self, path: str) -> bool:
        """Whether a file or a folder has this path."""
        return self._real(path).exists()

    def digest(self, path: str, on_bytes: OnBytes) -> str:
        """SHA-256 of a file as 64 hexadecimal digits."""
        content = hashlib.sha256()
        for chunk in self.read(path, 0):
            content.update(chunk)
            on_bytes(len(chunk))
        return content.hexdigest()

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """Content of a file from an offset."""
        try:
            # A pipe without a writer would block otherwise.
            descriptor = os.open(self._real(path), os.O_RDONLY | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                _check_regular(path, os.fstat(descriptor))
                file.seek(offset)
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise _failure(path, error) from error

    def write(self, path: str, offset: int, chunks: Iterable[bytes]) -> None:
        """Continue a file at an offset; what it had there before is cut off. Makes missing folders."""
        real = self._real(path)
        with _failures(path):
            real.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(real, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o664)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _check_regular(path, os.fstat(descriptor))
            with _failures(path):
                file.truncate(offset)
                file.seek(offset)
            # An error of `chunks` is the caller's own.
            for chunk in chunks:
                with _failures(path):
                    _write_all(file, chunk)
            with _failures(path):
                os.fsync(descriptor)

    def publish(self, partial: str, path: str) -> None:
        """Give a complete file or folder its name, in one step. It replaces nothing."""
        source, target = self._real(partial), self._real(path)
        if target.exists():
            raise StoredFilesError(f"{path} exists")
        with _failures(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        # Another file of the same transfer may still be in the folder of partial files.
        with suppress(OSError):
            source.parent.rmdir()

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""
        with _failures(path):
            self._real(path).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """Bytes that the volume has left; None if it does not say."""
        with _failures("the store"):
            found = os.statvfs(self._root)
        return found.f_bavail * found.f_frsize or None

    def _real(self, path: str) -> Path:
        if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise StoredFilesError(f"{path!r} is not a path below the store")
        try:
            real = Path(self._root, path).resolve()
        except (OSError, RuntimeError) as error:
            raise StoredFilesError(f"{path}: {error}") from error
        if real == self._root or not real.is_relative_to(self._root):
            raise StoredFilesError(f"{path} is or contains a symbolic link that leads out of the store")
        return real


def _check_regular(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StoredFilesError(f"{path} is not a regular file")


@contextmanager
def _failures(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


def _write_all(file: Any, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _failure(path: str, error: OSError) -> StoredFilesError:
    if error.errno in NO_SPACE:
        return StoredFilesError(f"no space is left for {path}: {error.strerror}")
    return StoredFilesError(f"{path}: {error.strerror or error}")


class StreamEnded(Exception):
    """The other side ended in the middle of a line or a frame, or sent neither."""


def read_line(stream: IO[bytes]) -> dict[str, Any]:
    """The next line, an object of JSON.

    Raises:
        StreamEnded: the stream ended, or has something else.
    """
    try:
        found = json.loads(stream.readline())
    except ValueError as error:
        raise StreamEnded from error
    if not isinstance(found, dict):
        raise StreamEnded
    return found


def write_line(stream: IO[bytes], value: Any) -> None:
    """Send a line of JSON."""
    stream.write(json.dumps(value).encode() + b"\n")
    stream.flush()


def write_frames(stream: IO[bytes], chunks: Iterable[bytes]) -> None:
    """Send content. An error of `chunks` leaves it without an end."""
    for chunk in chunks:
        stream.write(LENGTH.pack(len(chunk)) + chunk)
    stream.write(LENGTH.pack(0))
    stream.flush()


def read_frames(stream: IO[bytes]) -> Iterator[bytes]:
    """Receive content.

    Raises:
        StoredFilesError: the sender could not read all of it.
        StreamEnded: the content has no end.
    """
    while length := LENGTH.unpack(_read_all(stream, LENGTH.size))[0]:
        if length == FAILED:
            raise StoredFilesError(read_line(stream)["error"])
        yield _read_all(stream, length)


def _read_all(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise StreamEnded
    return content


def serve(files: StoredFiles, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer requests until `source` ends. After a failed write it ends, because the content is unread."""
    while True:
        try:
            request = read_line(source)
        except StreamEnded:
            return
        operation: str = request["operation"]
        arguments: list[Any] = request["arguments"]
        try:
            if operation == "read":
                _send(files, sink, *arguments)
            elif operation == "write":
                path, offset = arguments
                files.write(path, offset, read_frames(source))
                write_line(sink, {"answer": None})
            elif operation == "digest":
                write_line(sink, {"answer": files.digest(arguments[0], _Alive(sink))})
            else:
                write_line(sink, {"answer": getattr(files, operation)(*arguments)})
        except StoredFilesError as error:
            write_line(sink, {"error": str(error)})
            if operation == "write":
                return
        except StreamEnded:
            return


def _send(files: StoredFiles, sink: IO[bytes], path: str, offset: int) -> None:
    chunks = files.read(path, offset)
    try:
        write_frames(sink, chunks)
    except StoredFilesError as error:
        sink.write(LENGTH.pack(FAILED))
        write_line(sink, {"error": str(error)})


class _Alive:
    """Reports hashed bytes from time to time, so that a long silence means a lost connection."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._unreported = 0

    def __call__(self, count: int) -> None:
        self._unreported += count
        if self._unreported >= ALIVE_BYTES:
            write_line(self._sink, {"hashed": self._unreported})
            self._unreported = 0


if __name__ == "__main__":
    serve(StoredFiles(sys.argv[-1]), sys.stdin.buffer, sys.stdout.buffer)
