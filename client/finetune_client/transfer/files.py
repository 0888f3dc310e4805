# SPDX-License-Identifier: Apache-2.0
"""Files of a store wherever it is: in a folder of this machine, behind a process in a pod, or in a bucket."""

import hashlib
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files as package_files
from tempfile import TemporaryFile
from typing import IO, Any, Final, Protocol, cast

from finetune_client.errors import OperationError
from finetune_client.transfer.stored_files import (
    CHUNK_BYTES,
    OnBytes,
    StoredFilesError,
    StreamEnded,
    read_frames,
    read_line,
    write_frames,
    write_line,
)
from finetune_trainer.manifest import ignore_bytes

STALL_SECONDS: Final = 60.0
"""Time without a byte after which a connection counts as lost."""
END_SECONDS: Final = 0.5
"""Time that a process gets to end after its output did."""


FINAL: Final = re.compile(
    r"\(Forbidden\)|is forbidden|\(NotFound\)|not found|completed pod|stopped container"
)
"""Messages of kubectl after which another attempt in the same pod is pointless."""


class ConnectionLost(Exception):
    """The way to the files broke; the operation may have had a part of its effect."""


class Files(Protocol):
    """Files below one folder of a store; paths are relative, with `/`.

    Methods raise StoredFilesError if a repetition would fail as well, otherwise ConnectionLost.
    """

    @property
    def resumes(self) -> bool:
        """Whether `write` can continue a file at an offset."""

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if nothing has this path."""

    def exists(self, path: str) -> bool:
        """Whether a file or a folder has this path."""

    def digest(self, path: str, on_bytes: OnBytes) -> str:
        """SHA-256 of a file as 64 hexadecimal digits."""

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """Content of a file from an offset."""

    def write(self, path: str, offset: int, chunks: Iterable[bytes]) -> None:
        """Write a file, from an offset on."""

    def publish(self, partial: str, path: str) -> None:
        """Give a complete file or folder its name. It replaces nothing."""

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""

    def free_bytes(self) -> int | None:
        """Bytes that are left; None if the store has no limit or does not say."""


SOURCE: Final = (package_files("finetune_client.transfer") / "stored_files.py").read_bytes()
BOOTSTRAP: Final = "import sys; exec(sys.stdin.buffer.read(int(sys.argv[1])))"
"""Program that reads its own source from its input, because a command line has a limit."""


def server_command(root: str) -> list[str]:
    """Command of a process that serves the files below a folder, after `SOURCE` on its input."""
    return ["python3", "-I", "-c", BOOTSTRAP, str(len(SOURCE)), root]


class ProcessFiles:
    """Files that a process serves, such as `kubectl exec` of `server_command`.

    Args:
        command: command line of the process. A new one is started after a lost connection.
        stall_seconds: time without a byte after which the process is killed.
    """

    resumes = True

    def __init__(self, command: list[str], stall_seconds: float = STALL_SECONDS) -> None:
        self._command = command
        self._stall_seconds = stall_seconds
        self._connection: _Connection | None = None

    def size(self, path: str) -> int | None:
        """As StoredFiles."""
        return cast("int | None", self._ask("size", path))

    def exists(self, path: str) -> bool:
        """As StoredFiles."""
        return bool(self._ask("exists", path))

    def digest(self, path: str, on_bytes: OnBytes) -> str:
        """As StoredFiles; `on_bytes` is called seldom."""
        return str(self._ask("digest", path, on_bytes=on_bytes))

    def publish(self, partial: str, path: str) -> None:
        """As StoredFiles."""
        self._ask("publish", partial, path)

    def remove(self, path: str) -> None:
        """As StoredFiles."""
        self._ask("remove", path)

    def free_bytes(self) -> int | None:
        """As StoredFiles."""
        return cast("int | None", self._ask("free_bytes"))

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """As StoredFiles."""
        with self._connected() as connection:
            connection.send("read", path, offset)
            for chunk in read_frames(connection.output):
                connection.touch()
                yield chunk
            connection.rest()

    def write(self, path: str, offset: int, chunks: Iterable[bytes]) -> None:
        """As StoredFiles. An error of `chunks` ends the connection."""
        with self._connected() as connection:
            connection.send("write", path, offset)
            # The server ends when it cannot write, and has said why.
            with suppress(BrokenPipeError):
                write_frames(connection.input, connection.touched(chunks))
            try:
                connection.answer(ignore_bytes)
            except StoredFilesError:
                self.close()
                raise

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, operation: str, *arguments: Any, on_bytes: OnBytes = ignore_bytes) -> Any:
        with self._connected() as connection:
            connection.send(operation, *arguments)
            return connection.answer(on_bytes)

    @contextmanager
    def _connected(self) -> Iterator["_Connection"]:
        """A connection at the beginning of a request. Whatever interrupts the request ends it."""
        if self._connection is None:
            self._connection = _Connection(self._command, self._stall_seconds)
        try:
            yield self._connection
        except StoredFilesError:
            raise
        except (StreamEnded, OSError) as error:
            reason = self._connection.reason()
            self.close()
            if FINAL.search(reason):
                raise StoredFilesError(reason) from error
            raise ConnectionLost(reason) from error
        except BaseException:
            self.close()
            raise


class _Connection:
    """One process and its streams. A thread kills it when nothing moves any more."""

    def __init__(self, command: list[str], stall_seconds: float) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C is for the program, which then removes what it has made.
            start_new_session=True,
        )
        self.input = cast("IO[bytes]", self._process.stdin)
        self.output = cast("IO[bytes]", self._process.stdout)
        self._stall_seconds = stall_seconds
        self._moved = time.monotonic()
        self._waiting = False
        self._stalled = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self.input.write(SOURCE)
        except OSError:
            # The first request reports it, with what the process wrote.
            self._process.wait()

    def send(self, operation: str, *arguments: Any) -> None:
        self._waiting = True
        self.touch()
        write_line(self.input, {"operation": operation, "arguments": arguments})

    def answer(self, on_bytes: OnBytes) -> Any:
        while "hashed" in (line := read_line(self.output)):
            self.touch()
            on_bytes(line["hashed"])
        self.rest()
        if "error" in line:
            raise StoredFilesError(line["error"])
        if "answer" not in line:
            raise StreamEnded
        return line["answer"]

    def rest(self) -> None:
        """The answer is complete; silence does not mean a lost connection."""
        self._waiting = False

    def touched(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.touch()
            yield chunk

    def touch(self) -> None:
        self._moved = time.monotonic()

    def reason(self) -> str:
        """Why the process does not answer."""
        if self._stalled:
            return f"no data for {self._stall_seconds:.0f} seconds"
        with suppress(subprocess.TimeoutExpired):
            # One that ended its output ends itself, with the reason.
            self._process.wait(END_SECONDS)
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
        code = self._process.returncode
        return "the connection ended" + (f" with exit code {code}" if code > 0 else "")

    def close(self) -> None:
        self._closed.set()
        self._process.kill()
        self._process.wait()
        for stream in (self.input, self.output, self._errors):
            try:
                stream.close()
            except OSError:
                # What is left in the buffer cannot be sent any more.
                continue

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_seconds / 4):
            if self._waiting and time.monotonic() - self._moved > self._stall_seconds:
                self._stalled = True
                self._process.kill()
                return


class BucketFiles:
    """Objects below a folder of a bucket, through fsspec, with the user's own credentials.

    Args:
        system: the file system of fsspec.
        root: bucket and folder in it.
    """

    resumes = False

    def __init__(self, system: Any, root: str) -> None:
        self._system = system
        self._root = root.rstrip("/")

    def size(self, path: str) -> int | None:
        """As StoredFiles."""
        with _bucket_errors(path):
            try:
                found = self._system.info(self._path(path))
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

    def exists(self, path: str) -> bool:
        """As StoredFiles."""
        with _bucket_errors(path):
            return bool(self._system.exists(self._path(path)))

    def digest(self, path: str, on_bytes: OnBytes) -> str:
        """As StoredFiles. It reads the whole object, because buckets have no common digest."""
        content = hashlib.sha256()
        for chunk in self.read(path, 0):
            content.update(chunk)
            on_bytes(len(chunk))
        return content.hexdigest()

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """As StoredFiles."""
        with _bucket_errors(path), self._system.open(self._path(path), "rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def write(self, path: str, offset: int, chunks: Iterable[bytes]) -> None:
        """As StoredFiles, but only from offset 0."""
        if offset:
            raise StoredFilesError(f"{path}: an object of a bucket cannot be continued")
        with _bucket_errors(path), self._system.open(self._path(path), "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    def publish(self, partial: str, path: str) -> None:
        """As StoredFiles. The bucket copies the objects."""
        if self.exists(path):
            raise StoredFilesError(f"{path} exists")
        with _bucket_errors(path):
            self._system.mv(self._path(partial), self._path(path), recursive=True)

    def remove(self, path: str) -> None:
        """As StoredFiles."""
        with _bucket_errors(path):
            if self._system.exists(self._path(path)):
                self._system.rm_file(self._path(path))

    def free_bytes(self) -> int | None:
        """None: buckets have no limit."""
        return None

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"


@contextmanager
def _bucket_errors(path: str) -> Iterator[None]:
    """File systems of fsspec raise errors of their clients, which have no common class."""
    try:
        yield
    except (StoredFilesError, OperationError):
        raise
    except (ConnectionError, TimeoutError) as error:
        raise ConnectionLost(str(error)) from error
    except PermissionError as error:
        raise StoredFilesError(
            f"{path}: the bucket refuses the credentials of this machine ({error}); check those that the"
            " provider's own tool uses, such as AWS_PROFILE"
        ) from error
    except Exception as error:
        raise StoredFilesError(f"{path}: {type(error).__name__}: {error}") from error
