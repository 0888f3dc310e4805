# SPDX-License-Identifier: Apache-2.0
"""Lists of int32 on disk, one per row: written row by row, and read by mapping the files into memory.

A column `name` has two files, both little-endian: `name.int32` with the values of all rows, and
`name.bounds.int64` with the number of values before each row and after the last.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

VALUE: Final = np.dtype("<i4")
BOUND: Final = np.dtype("<i8")
BUFFER_BYTES: Final = 1 << 16

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


class ColumnWriter:
    """Writes a column; complete when the block ends. Raises OSError."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = _paths(folder, name)
        self._total = 0

    def __enter__(self) -> Self:
        self._values, self._bounds = (path.open("wb", BUFFER_BYTES) for path in self._paths)
        _write(self._bounds, [0], BOUND)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values.close()
        self._bounds.close()

    def append(self, values: Sequence[int]) -> None:
        """Append the values of the next row."""
        _write(self._values, values, VALUE)
        self._total += len(values)
        _write(self._bounds, [self._total], BOUND)


class TokenColumn:
    """A column whose pages are read from disk when they are used. Raises OSError."""

    def __init__(self, folder: Path, name: str) -> None:
        values, bounds = _paths(folder, name)
        self._values: Int32s = _mapped(values, VALUE)
        self._bounds: Int64s = _mapped(bounds, BOUND)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, row: int) -> list[int]:
        values: list[int] = self._values[self._bounds[row] : self._bounds[row + 1]].tolist()
        return values

    @property
    def lengths(self) -> Int64s:
        """Number of values of each row."""
        return np.diff(self._bounds)

    def firsts(self, absent: Int64s) -> Int64s:
        """The first value of each row; that of `absent` for a row without values."""
        found = absent.copy()
        rows = np.flatnonzero(self.lengths)
        found[rows] = self._values[self._bounds[rows]]
        return found


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.int32", folder / f"{name}.bounds.int64"


def _write(file: BinaryIO, values: Sequence[int], dtype: np.dtype[Any]) -> None:
    file.write(np.array(values, dtype).tobytes())


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
