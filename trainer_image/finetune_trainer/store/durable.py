# SPDX-License-Identifier: Apache-2.0
"""Writes that survive a power loss: first the content, then its name, each flushed to the disk."""

import os
import shutil
import uuid
from pathlib import Path


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
