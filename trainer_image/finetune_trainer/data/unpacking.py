"""What packed files become: their content, and how much of it may come."""

import gzip
import io
from typing import IO, Any, Final

CHUNK_BYTES: Final = 1 << 18
MAX_BYTES: Final = 64 << 30
"""Of the unpacked files of a source, and of the rows made of them, where no other bound is asked for: 6 MB
can be packed 64 GB."""

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
ZSTD_BYTES: Final = 2 << 10
"""Packed bytes that are unpacked at once: four of them can become 128 KiB."""


class TooLarge(Exception):
    """Rows become more than was allowed; the message says how much that is."""


class Budget:
    """How many bytes may come out of all files of a source together, or go into a dataset.

    `limit_bytes`: None for MAX_BYTES.
    """

    def __init__(self, what: str, limit_bytes: int | None = None) -> None:
        self._what = what
        self._limit_bytes = MAX_BYTES if limit_bytes is None else limit_bytes
        self.used = 0
        """Bytes so far."""

    def use(self, size: int) -> None:
        """Raises TooLarge."""
        self.used += size
        if self.used > self._limit_bytes:
            raise TooLarge(
                f"{self._what} more than {_shown(self._limit_bytes)}; divide the rows among Datasets, or"
                " raise maxUnpackedBytes"
            )


def unpacking_budget(limit_bytes: int | None = None) -> Budget:
    """That of the files of one source."""
    return Budget("unpacked, its files are", limit_bytes)


def _shown(size: int) -> str:
    unit, shift = ("GiB", 30) if size >= 1 << 30 else ("MiB", 20)
    return f"{round(size / (1 << shift), 2):g} {unit}"


def unpacked(file: io.RawIOBase, magic: bytes, budget: Budget) -> IO[bytes]:
    """The content of a file that begins with `magic`.

    Its reader raises TooLarge, and of a damaged file EOFError and what the libraries raise.
    """
    content: io.RawIOBase | gzip.GzipFile = file
    if magic.startswith(GZIP):
        content = gzip.GzipFile(fileobj=io.BufferedReader(file, CHUNK_BYTES))
    elif magic == ZSTD:
        content = _ZstdFrames(file)
    return io.BufferedReader(_Counted(content, budget), CHUNK_BYTES)


class _Counted(io.RawIOBase):
    """A reader whose bytes come out of a budget."""

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
