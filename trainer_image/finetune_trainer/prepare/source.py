"""The files of a source, read once from beginning to end and hashed on the way."""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.contract import Digest, ExitCode, FailureReason
from finetune_trainer.failure import Preempted, StageFailure
from finetune_trainer.manifest import digest_of

SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".json", ".csv"})
"""What is read of a folder; a file that is named itself may have any name."""
MAX_ROW_BYTES: Final = 16 << 20
"""Longest row; a longer one is a file without line ends, or an unclosed quote."""
WAIT_SECONDS: Final = 60.0
"""How long a source may take to appear: the kubelet fills the volume of a late ConfigMap on its next sync."""
POLL_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class SourceFile:
    """One file; its `digest` is that of the bytes read so far."""

    def __init__(self, path: Path, uri: str) -> None:
        self._path = path
        self._uri = uri
        self.name = os.fsencode(path.name).decode(errors="backslashreplace")
        self.bytes_read = 0
        self._content = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 as 64 hexadecimal digits."""
        return self._content.hexdigest()

    @property
    def size(self) -> int:
        """In bytes. Raises StageFailure (SOURCE_NOT_FOUND), as all that reads."""
        with readable(self._uri):
            return self._path.stat().st_size

    def head(self, size: int) -> bytes:
        """The first bytes, which count as not read."""
        with readable(self._uri), self._path.open("rb") as file:
            return file.read(size)

    def lines(self) -> Iterator[bytes]:
        """Each line with its end; of a line longer than `MAX_ROW_BYTES` only more than that many bytes."""
        with readable(self._uri), self._path.open("rb") as file:
            while line := file.readline(MAX_ROW_BYTES + 1):
                self._count(line)
                yield line
                while not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
                    self._count(line)

    def _count(self, content: bytes) -> None:
        self.bytes_read += len(content)
        self._content.update(content)


def source_digest(files: list[SourceFile]) -> Digest:
    """The digest of what was read: name and content of each file, in order."""
    return digest_of(canonical.encode([[file.name, file.digest] for file in files]))


def find_files(
    path: Path, uri: str, stop: threading.Event, wait_seconds: float = WAIT_SECONDS
) -> list[SourceFile]:
    """The source's files sorted by name, as soon as there is one.

    Raises StageFailure (SOURCE_NOT_FOUND) naming `uri`, Preempted.
    """
    deadline = time.monotonic() + wait_seconds
    said = False
    while not (files := _list(path, uri)):
        if time.monotonic() >= deadline:
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, f"{uri}: {_absence(path)}", ExitCode.BAD_DATA)
        if not said:
            logger.info("waiting up to %.0f s for %s to appear", wait_seconds, uri)
            said = True
        if stop.wait(POLL_SECONDS):
            raise Preempted
    return [SourceFile(file, uri) for file in files]


def is_data(name: str) -> bool:
    """Whether a file of this name is read of a folder."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith(".")


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Turn an OSError about the source into StageFailure (SOURCE_NOT_FOUND) that says what to check."""
    try:
        yield
    except OSError as error:
        lasting = isinstance(error, PermissionError | FileNotFoundError)
        named = f"{error.filename}: " if error.filename else ""
        raise StageFailure(
            FailureReason.SOURCE_NOT_FOUND,
            f"{uri}: {named}{error.strerror or error}; the source must be readable by uid 65532",
            ExitCode.BAD_DATA if lasting else ExitCode.INTERNAL,
        ) from error


def _list(path: Path, uri: str) -> list[Path]:
    with readable(uri):
        return _data_files(path)


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    # Names with a leading dot are the kubelet's own, in the volume of a ConfigMap.
    files = [entry for entry in sorted(path.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    taken = [file for file in files if is_data(file.name)]
    if taken and len(taken) < len(files):
        skipped = ", ".join(file.name for file in files if file not in taken)
        logger.warning("not read, because it is none of %s: %s", " ".join(sorted(SUFFIXES)), skipped)
    return taken


def _absence(path: Path) -> str:
    if path.is_dir():
        return f"it has no file with one of the endings {' '.join(sorted(SUFFIXES))}; add the rows there"
    if not path.parent.is_dir():
        return "not found; make it, or correct source.uri"
    there = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    beside = f"there are: {', '.join(there[:10])}" if there else "nothing is there"
    return f"{path.name} not found, {beside}; make it, or correct source.uri"
