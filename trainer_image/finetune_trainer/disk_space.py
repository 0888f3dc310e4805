# SPDX-License-Identifier: Apache-2.0
"""Free space of a file system, judged before large files are written to it."""

import errno
import shutil
from pathlib import Path


class NoSpace(OSError):
    """Too little free space. `strerror` has the figures; `filename` is the folder."""

    def __init__(self, folder: Path, content: str, needed_bytes: int, free_bytes: int) -> None:
        figures = f"{content} needs {size_text(needed_bytes)}, and {size_text(free_bytes)} are free"
        super().__init__(errno.ENOSPC, figures, str(folder))


def require_space(folder: Path, needed_bytes: int, content: str) -> None:
    """Check that the file system has room for `content`, which will be written to `folder`.

    `folder` need not exist yet. A file system that does not report its size is not judged.
    Raises NoSpace, OSError.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    found = shutil.disk_usage(existing)
    if found.total and needed_bytes > found.free:
        raise NoSpace(folder, content, needed_bytes, found.free)


def size_text(size_bytes: int) -> str:
    """Format a number of bytes for messages, such as `3.4 GiB`."""
    value = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
