"""Writes that survive a power cut: content first, then its name, each forced to the disk."""

import os
import uuid
from pathlib import Path


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def write_file(path: Path, content: bytes) -> None:
    """Write `path` so that a reader sees the old content or the new, never a part; replaces a file."""
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
    """Give a folder its final name, its content forced to the disk before.

    Raises OSError (ENOTEMPTY or EEXIST) where `target` is a folder with content.
    """
    sync_tree(source)
    source.rename(target)
    sync(target.parent)
