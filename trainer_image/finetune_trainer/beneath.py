"""Open what a user's path names, and nothing outside the folder that the user fills.

Whoever fills a volume may put a symbolic link into it, to a file that only the pod may read: its mounted
Secrets, its token, its environment. So a path is walked one component at a time, each opened relative to the
one before and never through a link; the target of a link is walked in the same way. A link that stays inside
is followed. Whatever is exchanged meanwhile, nothing outside is opened. This is what the kernel does for
RESOLVE_BENEATH of openat2, which older kernels, seccomp filters and other systems lack.
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
"""As many as Linux follows."""
READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK a named pipe blocks until somebody writes to it."""
TRAVERSE: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""To go through a folder, which needs no right to list it."""

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
    """A path that is not opened; `strerror` says why and what to do, `filename` is the path."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EACCES, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def root_of(path: Path, mount: str) -> Path:
    """The folder that the user fills: the volume at `mount`; outside a pod the folder that `path` is in."""
    return Path(mount) if path.is_relative_to(mount) else path.parent


def open_file(path: Path, root: Path | None = None) -> int:
    """A descriptor of the regular file at `path`, which is `root` or lies beneath it.

    Without `root` the user named the path on a machine of their own, and links are followed.
    Raises PathRefused, and OSError naming `path`.
    """
    if root is None:
        # Opening a device may already do something to it.
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
    """The content of a small file. Raises as `open_file`."""
    with open(open_file(path, root), "rb") as file:
        return file.read()


def copy_file(source: Path, target: Path, root: Path) -> None:
    """Make `target`, which is not there yet, a copy of the file at `source`. Raises as `open_file`."""
    with open(open_file(source, root), "rb") as content, target.open("xb") as copy:
        shutil.copyfileobj(content, copy)


def kind_of(path: Path, root: Path) -> PathKind:
    """What is at `path`. Raises PathRefused for what is neither a file nor a folder, or outside; OSError."""
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
    """The names in a folder, sorted. Raises PathRefused, OSError."""
    descriptor = _walk(folder, root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(descriptor) as entries:
            return sorted(e.name for e in entries if with_folders or not e.is_dir(follow_symlinks=False))
    finally:
        os.close(descriptor)


def require_beneath(path: Path, root: Path) -> None:
    """Raises PathRefused where as much of `path` as there is leads out of `root`; OSError."""
    while path != root:
        try:
            os.close(_walk(path, root, TRAVERSE))
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            return


def require_all_beneath(folder: Path, root: Path) -> None:
    """Raises PathRefused where a link anywhere in a folder leads out of `root`; OSError.

    For folders whose other files libraries may open too.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            kind_of(path, root)


def unlinked(path: str, flags: int) -> int:
    """An `opener` for `open` that goes through no link. Raises OSError."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


class OpenDirectory(AbstractContextManager["OpenDirectory"]):
    """A private folder with files of a user's folder, each opened once and for as long as the block lasts.

    For libraries that take a path and open it themselves: what they open stays the file that was opened here,
    whatever happens to its name meanwhile.
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
            (self.path / name).symlink_to(f"/proc/self/fd/{descriptor}")

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _require_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for is_kind, name in FILE_KINDS if is_kind(mode)), "something else")
        raise PathRefused(path, NOT_A_FILE.format(what))


def _walk(path: Path, root: Path, flags: int) -> int:
    """A descriptor of what is at `path`, opened with `flags`. Raises PathRefused, OSError naming `path`."""
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
    """The way from `root` to `path`: the folders that are open, and the names that are left."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._root = root
        self._left = deque(path.relative_to(root).parts)
        self._links = 0
        self._open = [os.open(root, TRAVERSE)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.pop())

    def end(self, flags: int) -> int:
        """What the last name is, opened with `flags`. Raises PathRefused, OSError."""
        while self._left:
            name = self._left.popleft()
            if name == "..":
                self._back()
            elif (target := _link(name, self._open[-1])) is not None:
                self._follow(target)
            elif self._left:
                self._open.append(self._enter(name, TRAVERSE))
            else:
                return self._enter(name, flags)
        return os.open(".", flags, dir_fd=self._open[-1])

    def _enter(self, name: str, flags: int) -> int:
        folder = self._open[-1]
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not self._left and not stat.S_ISDIR(mode):
            _require_file(self._path, mode)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)

    def _back(self) -> None:
        # Not by the folder's own "..", which is another one once somebody has moved it.
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
        self._left.extendleft(reversed(target.parts))


def _link(name: str, folder: int) -> PurePosixPath | None:
    """Where the link of this name in an opened folder leads to; None where it is no link."""
    try:
        return PurePosixPath(os.readlink(name, dir_fd=folder))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
