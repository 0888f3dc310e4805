# SPDX-License-Identifier: Apache-2.0
"""Files of a source: read once from beginning to end, decompressed and hashed on the way.

The files share a limit on their unpacked size.
"""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from finetune_trainer.rooted_open import PathRefused, open_file

CHUNK_BYTES: Final = 1 << 18
MAX_BYTES: Final = 64 << 30
"""Default limit of all unpacked files, and of the prepared rows: 6 MB can unpack to 64 GB."""

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
ZSTD_BYTES: Final = 2 << 10
"""Number of compressed bytes to unpack at once: four of them can become 128 KiB."""


class TooLarge(Exception):
    """The content exceeds its limit; the message names the limit."""

    source: int | None = None
    """Number of the source that was read when the limit was reached; None for what was written."""


class Budget:
    """Limit on the total bytes unpacked from files, or written to a dataset.

    `what` is the subject of the message, in the plural. `limit_bytes`: None for MAX_BYTES.
    """

    def __init__(self, what: str, limit_bytes: int | None = None) -> None:
        self._what = what
        self._limit_bytes = MAX_BYTES if limit_bytes is None else limit_bytes
        self.used = 0
        """Number of bytes so far."""

    def use(self, size: int) -> None:
        """Count `size` more bytes. Raises TooLarge."""
        self.used += size
        if self.used > self._limit_bytes:
            raise TooLarge(
                f"{self._what} exceed {_shown(self._limit_bytes)}; divide the rows among several Datasets, or"
                " ask the platform team to raise limits.unpackedBytes of the ComputeProfile"
            )


def unpacking_budget(limit_bytes: int | None = None) -> Budget:
    """The budget of the files of all sources."""
    return Budget("the unpacked files", limit_bytes)


def _shown(size: int) -> str:
    unit, shift = ("GiB", 30) if size >= 1 << 30 else ("MiB", 20)
    return f"{round(size / (1 << shift), 2):g} {unit}"


def open_unpacked(file: io.RawIOBase, magic: bytes, budget: Budget) -> IO[bytes]:
    """The unpacked content of a file that begins with `magic`.

    Reading it raises TooLarge, and for a damaged file EOFError and the errors of the libraries.
    """
    content: io.RawIOBase | gzip.GzipFile = file
    if magic.startswith(GZIP):
        content = gzip.GzipFile(fileobj=io.BufferedReader(file, CHUNK_BYTES))
    elif magic == ZSTD:
        content = _ZstdFrames(file)
    return io.BufferedReader(_Counted(content, budget), CHUNK_BYTES)


class _Counted(io.RawIOBase):
    """Reader that counts its bytes against a budget."""

    def __init__(self, content: io.RawIOBase | gzip.GzipFile, budget: Budget) -> None:
        self._content = content
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises TooLarge."""
        size = self._content.readinto(buffer) or 0
        self._budget.use(size)
        return size


class _ZstdFrames(io.RawIOBase):
    """Content of all frames. The library's own reader does not detect a truncated last frame."""

    def __init__(self, file: io.RawIOBase) -> None:
        import zstandard

        self._file = file
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._begun = False
        self._packed = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError if the file ends within a frame."""
        while not self._content and self._more():
            pass
        size = min(len(buffer), len(self._content))
        buffer[:size] = self._content[:size]
        self._content = self._content[size:]
        return size

    def _more(self) -> bool:
        packed = self._packed or self._file.read(ZSTD_BYTES)
        self._packed = b""
        if not packed:
            if self._begun:
                raise EOFError
            return False
        self._content = memoryview(self._frame.decompress(packed))
        self._begun = not self._frame.eof
        if self._frame.eof:
            self._packed = self._frame.unused_data
            self._frame = self._new_frame()
        return True


SUFFIXES: Final = frozenset({".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".xlsx"})
COMPRESSED_SUFFIXES: Final = frozenset({".gz", ".zst"})
ENDINGS: Final = " ".join(sorted(SUFFIXES))
"""The suffixes as a text for messages."""
MAX_ROW_BYTES: Final = 16 << 20
"""Maximum length of a row. A longer one results from missing line ends or an unclosed quote."""
MAX_EMPTY_LINES: Final = 1_000_000
"""Maximum number of consecutive empty lines. A compressed megabyte can have hundreds of millions."""
IDENTITY_FIELDS: Final = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
"""Attributes of which at least one changes when a file is replaced or written to."""


class FileUnreadable(Exception):
    """A file cannot be read; the message gives the reason."""

    source: int = 0
    """Number of the source that has the file."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.refused = isinstance(error, PathRefused)
        """Whether a rule forbids opening the file; the message then also says what to do."""
        super().__init__(str(error) if self.refused else f"{path}: {error.strerror or error}")
        self.lasting = isinstance(error, PermissionError | FileNotFoundError)
        """Whether a retry cannot help."""


class FileChanged(FileUnreadable):
    """A file changed after it was first opened."""

    def __init__(self, path: Path) -> None:
        error = OSError(f"changed while it was read; run again when no process writes to {path.name}")
        super().__init__(path, error)


class FileDamaged(Exception):
    """A file cannot be read to its end; the message describes the damage."""

    def __init__(
        self, what: str, *, operation: str = "unpacked", fix: str = "compress or copy it again"
    ) -> None:
        super().__init__(what)
        self.operation = operation
        self.fix = fix


class SourceFile:
    """One file, optionally compressed with gzip or zstd, which its first bytes show, not its name.

    The file is opened beneath `root`, the folder that a user fills. Without a root, the user named the file
    directly. All files of a source share `budget`.
    Every read raises FileUnreadable, FileChanged if the file changes meanwhile, TooLarge beyond the budget,
    and FileDamaged for damaged compressed content.
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

    def unread(self) -> "SourceFile":
        """The same file for another read, with a budget of its own."""
        return SourceFile(self.path, self.name, root=self._root)

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes on disk that were read so far, as 64 hexadecimal digits."""
        return hashlib.sha256().hexdigest() if self._raw is None else self._raw.content.hexdigest()

    @property
    def bytes_read(self) -> int:
        """Number of bytes read so far, as on disk."""
        return 0 if self._raw is None else self._raw.bytes_read

    @property
    def bytes_unpacked(self) -> int:
        """Number of decompressed bytes so far of all files that share the budget."""
        return self._budget.used

    @property
    def size(self) -> int:
        """Size on disk in bytes."""
        return self._stat().st_size

    @property
    def modified(self) -> int:
        """Time of the last write, in nanoseconds since 1970."""
        return self._stat().st_mtime_ns

    def head(self, size: int) -> bytes:
        """The first bytes, decompressed; they do not count as read."""
        with convert_read_errors(self.path), self._open() as file:
            return open_unpacked(file, _magic(file), Budget("")).read(size)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the file's decompressed bytes for its only read; call `finish` afterwards."""
        with convert_read_errors(self.path):
            file = self._open()
            self._raw = _HashedFile(file)
            yield open_unpacked(self._raw, _magic(file), self._budget)

    @contextmanager
    def as_stored(self) -> Iterator[IO[bytes]]:
        """Open the bytes on disk for random access; they do not count as read."""
        with convert_read_errors(self.path), self._open() as file:
            yield io.BufferedReader(file, CHUNK_BYTES)

    def count_unpacked(self, size: int) -> None:
        """Count bytes that a reader of `as_stored` unpacked itself. Raises TooLarge."""
        self._budget.use(size)

    def lines(self) -> Iterator[bytes]:
        """Each line with its line end. A line longer than `MAX_ROW_BYTES` is truncated to one byte more.

        Also raises FileDamaged if too many consecutive lines are empty.
        """
        empty = 0
        with self.opened() as content:
            while line := content.readline(MAX_ROW_BYTES + 1):
                empty = empty + 1 if len(line) < 3 and line.isspace() else 0
                if empty > MAX_EMPTY_LINES:
                    what = f"more than {MAX_EMPTY_LINES:,} consecutive lines are empty"
                    raise FileDamaged(what, operation="read", fix="remove the empty lines")
                yield line
                while not line.endswith(b"\n") and (line := content.readline(MAX_ROW_BYTES)):
                    pass

    def finish(self) -> None:
        """Count and hash the bytes that were not read."""
        with convert_read_errors(self.path):
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
            with convert_read_errors(self.path):
                self._open().close()
        if self._first is None:
            raise ValueError("no file was opened")
        return self._first

    def _require_same(self, now: os.stat_result) -> None:
        """Raises FileChanged if the file was replaced or written to since it was first opened."""
        self._first = self._first or now
        if any(getattr(now, name) != getattr(self._first, name) for name in IDENTITY_FIELDS):
            raise FileChanged(self.path)


def stem(name: str) -> str:
    """The file name without the suffixes for format and compression."""
    path = PurePosixPath(name)
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.stem


def is_data(name: str) -> bool:
    """Whether a file of this name in a folder is read.

    Names with a leading dot belong to the kubelet, those with ~$ to an Excel that has the file open.
    """
    path = PurePosixPath(name)
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower() in SUFFIXES and not name.startswith((".", "~$"))


@contextmanager
def convert_read_errors(path: Path) -> Iterator[None]:
    """Convert an OSError into FileUnreadable, and a decompression error into FileDamaged."""
    import zstandard

    try:
        yield
    except EOFError as error:
        raise FileDamaged("it ends in the middle of its compressed content") from error
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise FileDamaged(f"its compressed content is damaged ({error})") from error
    except OSError as error:
        raise FileUnreadable(path, error) from error


def _magic(file: io.FileIO) -> bytes:
    """The first bytes; the next read starts at the beginning again."""
    magic = file.read(len(ZSTD))
    file.seek(0)
    return magic


class _HashedFile(io.RawIOBase):
    """A file that counts and hashes the bytes of its only read. Call `finish` at the end."""

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
        """Read the remaining bytes. Works even if a reader on top of this one closed it."""
        while chunk := self._file.read(CHUNK_BYTES):
            self.bytes_read += len(chunk)
            self.content.update(chunk)
        now = os.fstat(self._file.fileno())
        self._file.close()
        return now
