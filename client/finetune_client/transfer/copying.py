# SPDX-License-Identifier: Apache-2.0
"""Carry one file to a store or from it: resumed after a lost connection, checked, and whole or absent."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.files import ConnectionLost, Files
from finetune_client.transfer.stored_files import CHUNK_BYTES, NO_SPACE, OnBytes, StoredFilesError
from finetune_trainer.disk_space import size_text
from finetune_trainer.manifest import hash_content, hash_file, ignore_bytes

Answer = TypeVar("Answer")

MAX_FAILURES: Final = 5
"""Lost connections in a row, without a byte in between, after which a transfer ends."""
PAUSE_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Pauses after the first failures in a row; the last one repeats."""
PARTIAL: Final = ".partial"
"""Ending of a file of this machine that is not complete."""
AGAIN: Final = "run the same command again: it continues where it stopped"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine as it was when its digest was taken.

    Attributes:
        path: the file; a symbolic link to it has been followed.
        name: its path in the transfer, with `/`.
        identity: what changes when the file does.
    """

    path: Path
    name: str
    size: int
    sha256: str
    identity: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, name: str, on_bytes: OnBytes = ignore_bytes) -> "LocalFile":
        """Read a file and take its digest.

        Raises:
            OperationError: it is not a regular file, cannot be read, or changes meanwhile.
        """
        with _local_errors(path), _open(path) as file:
            before = os.fstat(file.fileno())
            digest = hash_content(file, on_bytes)
            after = os.fstat(file.fileno())
        if _identity(before) != _identity(after):
            raise _changed(path)
        return cls(path, name, after.st_size, digest, _identity(after))

    def chunks(self, offset: int) -> Iterator[bytes]:
        """Content from an offset.

        Raises:
            OperationError: the file has changed since its digest was taken, or cannot be read.
        """
        with _local_errors(self.path), _open(self.path) as file:
            if _identity(os.fstat(file.fileno())) != self.identity:
                raise _changed(self.path)
            file.seek(offset)
            left = self.size - offset
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk
            if left or _identity(os.fstat(file.fileno())) != self.identity:
                raise _changed(self.path)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OperationError(
                f"{path} is not a regular file: save its content to a file first",
                exit_code=ProgramExit.INVALID,
            )
        yield file


@contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OperationError(
                f"no space is left for {path}: free some on this machine, and {AGAIN}"
            ) from error
        raise OperationError(f"{path}: {error.strerror or error}") from error


def _changed(path: Path) -> OperationError:
    return OperationError(f"{path} changes while it is read: wait until it is complete, and upload it again")


@dataclass
class Patience:
    """Lost connections since the last byte that arrived, or the last answer.

    Attributes:
        pause: waits a number of seconds.
        on_lost: called with the reason before each pause.
    """

    pause: Callable[[float], None] = time.sleep
    on_lost: Callable[[str], None] = lambda _: None
    _failures: int = 0
    _reached: int = -1
    _file: str = field(default="")

    def reached(self, file: str, size: int) -> None:
        """A file has this size. If that is more than before, earlier failures do not count any more."""
        if file != self._file or size > self._reached:
            self._file, self._reached, self._failures = file, size, 0

    def answered(self) -> None:
        """The store answered: earlier failures do not count any more."""
        self._failures = 0

    def lost(self, name: str, error: ConnectionLost) -> None:
        """Wait before the next attempt.

        Raises:
            OperationError: there were too many in a row.
        """
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise OperationError(
                f"the connection for {name} was lost {MAX_FAILURES} times in a row ({error}): {AGAIN}"
            ) from error
        self.on_lost(str(error))
        self.pause(PAUSE_SECONDS[min(self._failures, len(PAUSE_SECONDS)) - 1])


@dataclass(frozen=True)
class Carrier:
    """What a transfer reports while it works, and how patient it is.

    Attributes:
        arrived: called with the number of bytes that a file has got further than before.
        checked: called with the number of bytes of each part whose digest is computed.
        patience: lost connections.
    """

    arrived: OnBytes = ignore_bytes
    checked: OnBytes = ignore_bytes
    patience: Patience = field(default_factory=Patience)


def send(file: LocalFile, files: Files, partial: str, carrier: Carrier) -> None:
    """Make `partial` in the store equal to a file, from what it has of it already.

    Raises:
        OperationError: the file changes, or its copy differs although it arrived twice.
        StoredFilesError: the store refuses it.
    """
    counted = _Counted(carrier.arrived)
    for is_last in (False, True):
        began = _until_arrived(file, files, partial, carrier.patience, counted)
        if insist(file.name, carrier.patience, lambda: files.digest(partial, carrier.checked)) == file.sha256:
            return
        insist(file.name, carrier.patience, lambda: files.remove(partial))
        # A part of an earlier attempt may be that of another file, or may never have reached the disk.
        if is_last or began == 0:
            break
    raise OperationError(f"{file.name} has another digest in the store than on this machine: {AGAIN}")


def _until_arrived(
    file: LocalFile, files: Files, partial: str, patience: Patience, counted: "_Counted"
) -> int:
    """Bytes that were there at the beginning."""
    began: int | None = None
    while True:
        try:
            there = files.size(partial)
            offset = there if there is not None and files.resumes and there <= file.size else 0
            began = offset if began is None else began
            patience.reached(partial, offset)
            counted.set(offset)
            if there != file.size:
                files.write(partial, offset, counted.each(file.chunks(offset)))
                counted.set(file.size)
        except ConnectionLost as error:
            patience.lost(file.name, error)
        else:
            return began


def insist(name: str, patience: Patience, ask: Callable[[], Answer]) -> Answer:
    """The answer of a store that may be unreachable for a while."""
    while True:
        try:
            answer = ask()
        except ConnectionLost as error:
            patience.lost(name, error)
        else:
            patience.answered()
            return answer


@dataclass
class _Counted:
    """Passes on how far a file has got, also if a part is sent twice."""

    on_bytes: OnBytes
    _position: int = 0

    def set(self, position: int) -> None:
        self.on_bytes(position - self._position)
        self._position = position

    def each(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self.set(self._position + len(chunk))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of the store, and where it goes.

    Attributes:
        path: path in the store.
        target: the file of this machine.
        sha256: its digest; None: the one that the store computes.
    """

    path: str
    target: Path
    size: int
    sha256: str | None = None


def receive(wanted: Wanted, files: Files, carrier: Carrier) -> bool:
    """Make `target` equal to a file of the store. Returns whether it was missing.

    Until it is complete and checked, it has the name of a partial file.

    Raises:
        OperationError: another file has that name, no space is left, or the content is not what it should be.
        StoredFilesError: the store refuses it.
    """
    name, target = wanted.path, wanted.target
    digest = wanted.sha256 or insist(name, carrier.patience, lambda: files.digest(name, carrier.checked))
    counted = _Counted(carrier.arrived)
    with _local_errors(target):
        if target.is_symlink() or target.exists():
            if target.is_symlink() or not target.is_file() or hash_file(target, carrier.checked) != digest:
                raise OperationError(
                    f"{target} exists and has another content: move it away, or name another folder",
                    exit_code=ProgramExit.EXISTS,
                )
            counted.set(wanted.size)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}{PARTIAL}")
        for is_last in (False, True):
            began = _until_received(wanted, partial, files, carrier.patience, counted)
            if hash_file(partial, carrier.checked) == digest:
                partial.rename(target)
                return True
            partial.unlink()
            if is_last or began == 0:
                break
    raise OperationError(
        f"{name} has another content than its manifest says, or changed meanwhile: it was not kept;"
        " a Checkpoint with such a file cannot be used, so train again, or restore the store from a copy"
    )


def _until_received(
    wanted: Wanted, partial: Path, files: Files, patience: Patience, counted: _Counted
) -> int:
    """Bytes that were there at the beginning."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(partial, flags, 0o666), "ab", buffering=0) as file:
        began = os.fstat(file.fileno()).st_size
        if began > wanted.size:
            file.truncate(0)
            began = 0
        position = began
        while True:
            patience.reached(wanted.path, position)
            counted.set(position)
            try:
                if position < wanted.size:
                    for chunk in files.read(wanted.path, position):
                        # A file that has grown is found by its digest; it must not fill the disk.
                        kept = chunk[: wanted.size - position]
                        file.write(kept)
                        position += len(kept)
                        counted.set(position)
                        if not kept:
                            break
                    if position < wanted.size:
                        raise StoredFilesError(f"{wanted.path} has {position} bytes instead of {wanted.size}")
            except ConnectionLost as error:
                patience.lost(wanted.path, error)
            else:
                return began


def space_error(needed: int, path: Path) -> OperationError | None:
    """Whether a folder of this machine, or the one that it will be in, has too little space."""
    existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    found = os.statvfs(existing)
    left = found.f_bavail * found.f_frsize
    if needed <= left:
        return None
    return OperationError(
        f"{path} needs {size_text(needed)}, but {existing} has {size_text(left)} left: free some, or name"
        " another folder"
    )
