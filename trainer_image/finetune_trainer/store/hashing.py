# SPDX-License-Identifier: Apache-2.0
"""Hashes files while they are written, so that a manifest needs no second read."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from finetune_trainer.manifest import FileEntry


class ByteSink(Protocol):
    """A file that is written from its beginning to its end."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Write all of `data`. Returns its size in bytes."""
        ...


WriteFile = Callable[[ByteSink], None]
"""Writes the content of one file."""


def written(content: bytes) -> WriteFile:
    """Write `content`."""

    def write(file: ByteSink) -> None:
        file.write(content)

    return write


class HashedFolder:
    """Writes files into a folder. Each file is synced to the disk, and hashed on its way there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.entries: list[FileEntry] = []
        """The files so far, for a manifest."""

    def write(self, name: str, write: WriteFile) -> None:
        """Write one file. Raises OSError."""
        with (self._folder / name).open("wb") as file:
            hashed = _HashedFile(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(FileEntry(path=name, bytes=hashed.size, sha256=hashed.digest))


class _HashedFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._file.write(data)
        self._hash.update(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        """Flush the file; some libraries call it."""
        self._file.flush()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
