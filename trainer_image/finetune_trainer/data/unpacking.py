# SPDX-License-Identifier: Apache-2.0
"""Decompression of files, with a limit on the unpacked size."""

import gzip
import io
from typing import IO, Any, Final

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


def unpacked(file: io.RawIOBase, magic: bytes, budget: Budget) -> IO[bytes]:
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
