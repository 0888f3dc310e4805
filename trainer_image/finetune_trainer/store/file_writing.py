# SPDX-License-Identifier: Apache-2.0
"""Writes files that survive a power loss, and hashes them while they are written.

First the content is flushed to the disk, then the name. A manifest needs no second read of the files.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from finetune_trainer.manifest import FileEntry


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush `folder` and every file and folder below it to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def write_file(path: Path, content: bytes) -> None:
    """Write `path` atomically: readers see the old or the new content. Replaces an existing file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def move_folder(source: Path, target: Path) -> None:
    """Flush a folder to the disk, then give it its final name.

    Raises OSError (ENOTEMPTY or EEXIST) if `target` is a folder with content.
    """
    sync_tree(source)
    source.rename(target)
    sync(target.parent)


def replace_folder(source: Path, target: Path) -> None:
    """Like `move_folder`, and replaces an existing folder."""
    if target.exists():
        replaced = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        target.rename(replaced)
        shutil.rmtree(replaced)
    move_folder(source, target)


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
