# SPDX-License-Identifier: Apache-2.0
"""Opens paths of users, and nothing outside of the folder that the user fills.

A user may put a symbolic link into a volume, to a file that only the pod may read: its mounted Secrets, its
token, its environment. So this module walks a path one component at a time. It opens each component relative
to the previous one and never through a link, and walks the target of a link in the same way. It follows links
that stay inside, and opens nothing outside even if the user replaces files during the walk. The kernel does
the same for RESOLVE_BENEATH of openat2, which older kernels, seccomp filters and other systems lack.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path, PurePosixPath
from typing import Final, Literal, Self

PathKind = Literal["File", "Folder", "Nothing"]

MAX_LINKS: Final = 40
"""Max links that are followed, as on Linux."""
READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK a named pipe blocks until a process writes to it."""
TRAVERSE: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags to traverse a folder, which does not need the right to list it."""

OPENED: Final = Path("/proc/self/fd")
"""The files that this process has opened, by descriptor. Only Linux has them."""

LEADS_OUT: Final = "leads out of the volume or folder by a symbolic link or by ..; put the file itself there"
NOT_A_FILE: Final = "is not a regular file but {}; save its content to a regular file and name that file"
FILE_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


class PathRefused(PermissionError):
    """A path that is not opened. `strerror` says why and what to do; `filename` is the path."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EACCES, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def root_of(path: Path, mount: str) -> Path:
    """Return the folder that the user fills: the volume at `mount`, or outside a pod the parent of `path`."""
    return Path(mount) if path.is_relative_to(mount) else path.parent


def open_file(path: Path, root: Path | None = None) -> int:
    """Open the regular file at `path`, which is `root` or lies beneath it. Returns a descriptor.

    Without `root` the path is on the user's own machine, and links are followed.
    Raises PathRefused, and OSError naming `path`.
    """
    if root is None:
        # Opening a device may have side effects.
        _require_file(path, os.stat(path).st_mode)  # noqa: PTH116 - beside fstat
        descriptor = os.open(path, READ)
    else:
        descriptor = _walk(path, root, READ)
    try:
        _require_file(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: Path, root: Path) -> bytes:
    """Return the content of a small file. Raises as `open_file`."""
    with open(open_file(path, root), "rb") as file:
        return file.read()


def copy_file(source: Path, target: Path, root: Path) -> None:
    """Copy the file at `source` to `target`, which must not exist. Raises as `open_file`."""
    with open(open_file(source, root), "rb") as content, target.open("xb") as copy:
        shutil.copyfileobj(content, copy)


def kind_of(path: Path, root: Path) -> PathKind:
    """Return the kind of `path`. Raises PathRefused if it is special or outside of `root`; OSError."""
    try:
        descriptor = _walk(path, root, READ)
    except (FileNotFoundError, NotADirectoryError):
        return "Nothing"
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            return "Folder"
        _require_file(path, mode)
        return "File"
    finally:
        os.close(descriptor)


def names_in(folder: Path, root: Path, *, with_folders: bool = True) -> list[str]:
    """Return the names in a folder, sorted. Raises PathRefused, OSError."""
    descriptor = _walk(folder, root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(descriptor) as entries:
            return sorted(e.name for e in entries if with_folders or not e.is_dir(follow_symlinks=False))
    finally:
        os.close(descriptor)


def require_beneath(path: Path, root: Path) -> None:
    """Raise PathRefused if the existing part of `path` leads out of `root`; OSError."""
    while path != root:
        try:
            os.close(_walk(path, root, TRAVERSE))
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            return


def require_all_beneath(folder: Path, root: Path) -> None:
    """Raise PathRefused if any link in a folder leads out of `root`; OSError.

    For folders in which libraries may open other files too.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            kind_of(path, root)


def no_follow_opener(path: str, flags: int) -> int:
    """`opener` for `open` that follows no link. Raises OSError."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


class OpenDirectory(AbstractContextManager["OpenDirectory"]):
    """A private folder with files of a user's folder, each opened once, for the duration of the block.

    For libraries that take a path and open it themselves: they open the file that was opened here, even if
    its name changes. Without the folder /proc, as on macOS, they open the name again.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root
        self._stack = ExitStack()
        self.path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="held-")))

    def add(self, names: Iterable[str]) -> None:
        """Open some of the user's files. Raises as `open_file`."""
        for name in names:
            descriptor = open_file(self._folder / name, self._root)
            self._stack.callback(os.close, descriptor)
            opened = OPENED / str(descriptor)
            (self.path / name).symlink_to(opened if OPENED.is_dir() else (self._folder / name).resolve())

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _require_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for is_kind, name in FILE_KINDS if is_kind(mode)), "something else")
        raise PathRefused(path, NOT_A_FILE.format(what))


def _walk(path: Path, root: Path, flags: int) -> int:
    """Open `path` with `flags`. Returns a descriptor. Raises PathRefused, OSError naming `path`."""
    if not path.is_relative_to(root):
        raise PathRefused(path, LEADS_OUT)
    try:
        with _Walk(path, root) as walk:
            return walk.end(flags)
    except PathRefused:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class _Walk:
    """State of a walk from `root` to `path`: the open folders, and the remaining names."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._root = root
        self._remaining = deque(path.relative_to(root).parts)
        self._links = 0
        self._open = [os.open(root, TRAVERSE)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.pop())

    def end(self, flags: int) -> int:
        """Open the last name with `flags`. Returns a descriptor. Raises PathRefused, OSError."""
        while self._remaining:
            name = self._remaining.popleft()
            if name == "..":
                self._back()
            elif (target := _link(name, self._open[-1])) is not None:
                self._follow(target)
            elif self._remaining:
                self._open.append(self._enter(name, TRAVERSE))
            else:
                return self._enter(name, flags)
        return os.open(".", flags, dir_fd=self._open[-1])

    def _enter(self, name: str, flags: int) -> int:
        folder = self._open[-1]
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not self._remaining and not stat.S_ISDIR(mode):
            _require_file(self._path, mode)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)

    def _back(self) -> None:
        # Not by the folder's own "..", which changes if the folder is moved.
        if len(self._open) == 1:
            raise PathRefused(self._path, LEADS_OUT)
        os.close(self._open.pop())

    def _follow(self, target: PurePosixPath) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise PathRefused(
                self._path, "is a symbolic link that leads to itself; put the file itself there"
            )
        if target.is_absolute():
            if not target.is_relative_to(self._root):
                raise PathRefused(self._path, LEADS_OUT)
            target = target.relative_to(self._root)
            while len(self._open) > 1:
                self._back()
        self._remaining.extendleft(reversed(target.parts))


def _link(name: str, folder: int) -> PurePosixPath | None:
    """Return the target of the link of this name in an open folder, or None if it is not a link."""
    try:
        return PurePosixPath(os.readlink(name, dir_fd=folder))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
