"""The files of a source: read once from beginning to end, unpacked and hashed on the way."""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from finetune_trainer.beneath import PathRefused, open_file
from finetune_trainer.data.unpacking import CHUNK_BYTES, ZSTD, Budget, unpacked, unpacking_budget

SUFFIXES: Final = frozenset({".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv"})
COMPRESSED_SUFFIXES: Final = frozenset({".gz", ".zst"})
ENDINGS: Final = " ".join(sorted(SUFFIXES))
"""For messages."""
MAX_ROW_BYTES: Final = 16 << 20
"""Longest row; a longer one is a file without line ends, or an unclosed quote."""
MAX_EMPTY_LINES: Final = 1_000_000
"""In a row; a megabyte can be packed hundreds of millions of them."""
IDENTITY_FIELDS: Final = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
"""What is another number once a file was exchanged or written to."""


class FileUnreadable(Exception):
    """A file cannot be read; the message says why."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.refused = isinstance(error, PathRefused)
        """Whether it could be opened and must not be; then the message says what to do too."""
        super().__init__(str(error) if self.refused else f"{path}: {error.strerror or error}")
        self.lasting = isinstance(error, PermissionError | FileNotFoundError)
        """Whether trying again is useless."""


class FileChanged(FileUnreadable):
    """A file is not any more what it was when it was looked at first."""

    def __init__(self, path: Path) -> None:
        error = OSError(f"was changed while it was read; run again when nobody writes to {path.name}")
        super().__init__(path, error)


class FileDamaged(Exception):
    """A file cannot be read to its end; the message says what was found."""

    def __init__(self, what: str, *, doing: str = "unpacked", fix: str = "pack or copy it again") -> None:
        super().__init__(what)
        self.doing = doing
        self.fix = fix


class SourceFile:
    """One file, which may be packed by gzip or zstd; told by its first bytes, not by its name.

    Every opening is beneath `root`, the folder that a user fills; without one the user named the file itself.
    `budget` is shared by all files of a source.
    Every read raises FileUnreadable, FileChanged if the file changes meanwhile, TooLarge beyond the budget,
    and FileDamaged for a damaged packed file.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        *,
        root: Path | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.path = path
        self._root = root
        self._budget = budget or unpacking_budget()
        self._first: os.stat_result | None = None
        self.name = os.fsencode(name or path.name).decode(errors="backslashreplace")
        self._raw: _HashedFile | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes read so far, as they are on disk; 64 hexadecimal digits."""
        return hashlib.sha256().hexdigest() if self._raw is None else self._raw.content.hexdigest()

    @property
    def bytes_read(self) -> int:
        """Of the bytes on disk."""
        return 0 if self._raw is None else self._raw.bytes_read

    @property
    def bytes_unpacked(self) -> int:
        """Of all files that share the budget, so far."""
        return self._budget.used

    @property
    def size(self) -> int:
        """In bytes, as it is on disk."""
        return self._stat().st_size

    @property
    def modified(self) -> int:
        """When it was written last, in nanoseconds since 1970."""
        return self._stat().st_mtime_ns

    def head(self, size: int) -> bytes:
        """The first bytes, unpacked; they count as not read."""
        with readable(self.path), self._open() as file:
            return unpacked(file, _magic(file), Budget("")).read(size)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked, for the one time that it is read; then call `finish`."""
        with readable(self.path):
            file = self._open()
            self._raw = _HashedFile(file)
            yield unpacked(self._raw, _magic(file), self._budget)

    @contextmanager
    def as_stored(self) -> Iterator[IO[bytes]]:
        """The bytes as they are on disk, at any place; they count as not read."""
        with readable(self.path), self._open() as file:
            yield io.BufferedReader(file, CHUNK_BYTES)

    def lines(self) -> Iterator[bytes]:
        """Each line with its end; of a line longer than `MAX_ROW_BYTES` only more than that many bytes.

        Also raises FileDamaged where too many lines in a row are empty.
        """
        empty = 0
        with self.opened() as content:
            while line := content.readline(MAX_ROW_BYTES + 1):
                empty = empty + 1 if len(line) < 3 and line.isspace() else 0
                if empty > MAX_EMPTY_LINES:
                    what = f"more than {MAX_EMPTY_LINES:,} lines in a row are empty"
                    raise FileDamaged(what, doing="read", fix="remove the empty lines")
                yield line
                while not line.endswith(b"\n") and (line := content.readline(MAX_ROW_BYTES)):
                    pass

    def finish(self) -> None:
        """Count and hash what was not read."""
        with readable(self.path):
            self._raw = self._raw or _HashedFile(self._open())
            self._require_same(self._raw.finish())

    def _open(self) -> io.FileIO:
        """Raises OSError, FileChanged."""
        file = io.FileIO(open_file(self.path, self._root))
        try:
            self._require_same(os.fstat(file.fileno()))
        except FileChanged:
            file.close()
            raise
        return file

    def _stat(self) -> os.stat_result:
        if self._first is None:
            with readable(self.path):
                self._open().close()
        if self._first is None:
            raise ValueError("no file was opened")
        return self._first

    def _require_same(self, now: os.stat_result) -> None:
        """Raises FileChanged where it is another file than at first, or was written to."""
        self._first = self._first or now
        if any(getattr(now, name) != getattr(self._first, name) for name in IDENTITY_FIELDS):
            raise FileChanged(self.path)


def stem(name: str) -> str:
    """A file's name without the endings for its format and its packing."""
    path = PurePosixPath(name)
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.stem


def is_data(name: str) -> bool:
    """Whether a file of this name is read of a folder. Names with a leading dot are the kubelet's own."""
    path = PurePosixPath(name)
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower() in SUFFIXES and not name.startswith(".")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError into FileUnreadable, and what an unpacker says of a damaged file into FileDamaged."""
    import zstandard

    try:
        yield
    except EOFError as error:
        raise FileDamaged("it ends in the middle of its packed content") from error
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise FileDamaged(f"its packed content is damaged ({error})") from error
    except OSError as error:
        raise FileUnreadable(path, error) from error


def _magic(file: io.FileIO) -> bytes:
    """The first bytes; the next read begins with them again."""
    magic = file.read(len(ZSTD))
    file.seek(0)
    return magic


class _HashedFile(io.RawIOBase):
    """A file that is read once; what passes is counted and hashed. Call `finish` in the end."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.bytes_read = 0
        self.content = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)
        self.bytes_read += size
        self.content.update(memoryview(buffer)[:size])
        return size

    def finish(self) -> os.stat_result:
        """Read what is left; also after a reader on top of this one was closed, and this one with it."""
        while chunk := self._file.read(CHUNK_BYTES):
            self.bytes_read += len(chunk)
            self.content.update(chunk)
        now = os.fstat(self._file.fileno())
        self._file.close()
        return now
