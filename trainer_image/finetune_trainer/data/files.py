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

from finetune_trainer.beneath import Refused, open_file

SUFFIXES: Final = frozenset({".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv"})
COMPRESSED_SUFFIXES: Final = frozenset({".gz", ".zst"})
ENDINGS: Final = " ".join(sorted(SUFFIXES))
"""For messages."""
MAX_ROW_BYTES: Final = 16 << 20
"""Longest row; a longer one is a file without line ends, or an unclosed quote."""
CHUNK_BYTES: Final = 1 << 18

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
ZSTD_BYTES: Final = 2 << 10
"""Packed bytes that are unpacked at once: four of them can become 128 KiB."""


class Unreadable(Exception):
    """A file cannot be read; the message says why."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.refused = isinstance(error, Refused)
        """Whether it could be opened and must not be; then the message says what to do too."""
        super().__init__(str(error) if self.refused else f"{path}: {error.strerror or error}")
        self.lasting = isinstance(error, PermissionError | FileNotFoundError)
        """Whether trying again is useless."""


class Damaged(Exception):
    """A file ends or changes in the middle of what unpacks it; the message says what was found."""


class SourceFile:
    """One file, which may be packed by gzip or zstd; told by its first bytes, not by its name.

    Every opening is beneath `root`, the folder that a user fills; without one the user named the file itself.
    All that reads raises Unreadable, and of a packed file Damaged.
    """

    def __init__(self, path: Path, name: str | None = None, *, root: Path | None = None) -> None:
        self.path = path
        self._root = root
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
            return _unpacked(file, _magic(file)).read(size)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked, for the one time that it is read; then call `finish`."""
        with readable(self.path):
            file = self._open()
            self._raw = _HashedFile(file)
            yield _unpacked(self._raw, _magic(file))

    @contextmanager
    def as_stored(self) -> Iterator[IO[bytes]]:
        """The bytes as they are on disk, at any place; they count as not read."""
        with readable(self.path), self._open() as file:
            yield io.BufferedReader(file, CHUNK_BYTES)

    def lines(self) -> Iterator[bytes]:
        """Each line with its end; of a line longer than `MAX_ROW_BYTES` only more than that many bytes."""
        with self.opened() as content:
            while line := content.readline(MAX_ROW_BYTES + 1):
                yield line
                while not line.endswith(b"\n") and (line := content.readline(MAX_ROW_BYTES)):
                    pass

    def finish(self) -> None:
        """Count and hash what was not read."""
        with readable(self.path):
            self._raw = self._raw or _HashedFile(self._open())
            self._raw.finish()

    def _open(self) -> io.FileIO:
        """Raises OSError."""
        return io.FileIO(open_file(self.path, self._root))

    def _stat(self) -> os.stat_result:
        with readable(self.path), self._open() as file:
            return os.fstat(file.fileno())


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
    """Turn an OSError into Unreadable, and what an unpacker says of a damaged file into Damaged."""
    import zstandard

    try:
        yield
    except EOFError as error:
        raise Damaged("it ends in the middle of its packed content") from error
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise Damaged(f"its packed content is damaged ({error})") from error
    except OSError as error:
        raise Unreadable(path, error) from error


def _magic(file: io.FileIO) -> bytes:
    """The first bytes; the next read begins with them again."""
    magic = file.read(len(ZSTD))
    file.seek(0)
    return magic


def _unpacked(file: io.RawIOBase, magic: bytes) -> IO[bytes]:
    if magic.startswith(GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=io.BufferedReader(file, CHUNK_BYTES)), CHUNK_BYTES)
    if magic == ZSTD:
        return io.BufferedReader(_ZstdFrames(file), CHUNK_BYTES)
    return io.BufferedReader(file, CHUNK_BYTES)


class _ZstdFrames(io.RawIOBase):
    """The content of all frames. The library's own reader ends in silence where the last frame is cut."""

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
        """Raises EOFError where the file ends within a frame."""
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

    def finish(self) -> None:
        """Read what is left; also after a reader on top of this one was closed, and this one with it."""
        while chunk := self._file.read(CHUNK_BYTES):
            self.bytes_read += len(chunk)
            self.content.update(chunk)
        self._file.close()
