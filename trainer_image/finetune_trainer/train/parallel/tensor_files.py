# SPDX-License-Identifier: Apache-2.0
"""Safetensors files that are written and read in small pieces, also by ranges of rows.

safetensors itself needs a file's content in memory to write it to a stream, and maps a file into memory to
read it. A file with a part of the rows of its tensors has the metadata of PyTorch's distributed checkpoint,
which can read such files too (`HuggingFaceStorageReader`).
"""

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from finetune_trainer.store.file_writing import ByteSink

SUFFIX: Final = ".safetensors"
PIECE_BYTES: Final = 16 << 20
"""Size of a read or write."""
MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the format."""
ALIGNMENT: Final = 8
SHARDING: Final = "DCP_SHARDING_INFO"
OFFSETS: Final = "saved_offsets"
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a tensor, from row `start` on; or a whole tensor."""

    data: Tensor
    start: int = 0

    @property
    def stop(self) -> int:
        """Index after the last row; 1 for a tensor without dimensions."""
        return self.start + (self.data.shape[0] if self.data.ndim else 1)

    @property
    def offsets(self) -> list[int]:
        """Offset of the rows in the whole tensor, by dimension."""
        return [self.start, *([0] * (self.data.ndim - 1))] if self.data.ndim else []


def file_order(tensors: Mapping[str, Rows]) -> list[str]:
    """Names of tensors in safetensors' own order of their content, which aligns all of them."""
    return sorted(tensors, key=lambda name: (-tensors[name].data.element_size(), name))


def write_tensors(
    file: ByteSink,
    tensors: Mapping[str, Rows],
    *,
    is_shard: bool = False,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a safetensors file, in pieces of at most `PIECE_BYTES`.

    With `is_shard`, other files have the remaining rows of the tensors. With `read`, `tensors` may be on the
    meta device: `read` returns each when it is written.
    """
    names = file_order(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    if is_shard:
        header["__metadata__"][SHARDING] = json.dumps({n: {OFFSETS: tensors[n].offsets} for n in names})
    end = 0
    for name in names:
        data = tensors[name].data
        begin, end = end, end + data.numel() * data.element_size()
        header[name] = {"dtype": NAMES[data.dtype], "shape": list(data.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        flat = (tensors[name].data if read is None else read(name)).detach().reshape(-1)
        step = PIECE_BYTES // flat.element_size()
        for at in range(0, flat.numel(), step):
            piece = flat[at : at + step].cpu().contiguous()
            file.write(piece.view(torch.uint8).numpy().data)


class TensorFiles:
    """The tensors of safetensors files, which together have all rows of each tensor."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._places: dict[str, list[_Place]] = defaultdict(list)
        for path in files:
            for name, place in _places(path):
                self._places[name].append(place)
        for places in self._places.values():
            places.sort(key=lambda place: place.start)

    @classmethod
    def below(cls, folder: Path) -> "TensorFiles":
        """All safetensors files of a folder."""
        return cls(sorted(folder.glob(f"*{SUFFIX}")))

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor with all of its rows. Raises KeyError."""
        places = self._places[name]
        rest = places[0].shape
        return (places[-1].stop, *rest[1:]) if rest else ()

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor. Raises KeyError."""
        return self._places[name][0].dtype

    def read(self, name: str, target: Rows) -> None:
        """Read the rows of `target` into it, in its dtype.

        Raises ValueError if the shapes differ or rows are missing; KeyError, OSError.
        """
        shape = self.shape(name)
        if shape[1:] != tuple(target.data.shape[1:]) or len(shape) != target.data.ndim:
            raise ValueError(f"{name} has the shape {list(shape)}, which does not fit the model")
        done = target.start
        for place in self._places[name]:
            first, last = max(place.start, target.start), min(place.stop, target.stop)
            if first < last:
                if first != done:
                    break
                into = target.data[first - target.start : last - target.start] if shape else target.data
                place.read(first, last, into)
                done = last
        if done != target.stop:
            raise ValueError(f"{name} has no rows {done} to {target.stop}")


@dataclass(frozen=True)
class _Place:
    """Rows of a tensor in a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    offset: int

    @property
    def stop(self) -> int:
        return self.start + (self.shape[0] if self.shape else 1)

    def read(self, first: int, last: int, target: Tensor) -> None:
        """Read rows `first` to `last` of the whole tensor."""
        row = prod(self.shape[1:])
        flat = target.detach().view(-1)
        size = self.dtype.itemsize
        step = PIECE_BYTES // size
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + (first - self.start) * row * size)
            for begin, end in pairwise([*range(0, (last - first) * row, step), (last - first) * row]):
                content = bytearray((end - begin) * size)
                view = memoryview(content)
                while view:
                    count = file.readinto(view)
                    if not count:
                        raise OSError(f"{self.path} is truncated")
                    view = view[count:]
                flat[begin:end].copy_(torch.frombuffer(content, dtype=self.dtype))


def _places(path: Path) -> Iterable[tuple[str, _Place]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    offsets = json.loads(metadata.get(SHARDING, "{}"))
    for name, tensor in header.items():
        start = (offsets.get(name, {}).get(OFFSETS) or [0])[0]
        begin, _ = tensor["data_offsets"]
        yield (
            name,
            _Place(path, DTYPES[tensor["dtype"]], tuple(tensor["shape"]), start, 8 + length + begin),
        )
