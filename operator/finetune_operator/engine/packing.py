# SPDX-License-Identifier: Apache-2.0
"""Compress objects that are seldom read to a tenth of the memory: JSON with another object as dictionary."""

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from finetune_operator.plan import Manifest

LEVEL: Final = 6
WINDOW: Final = -15
"""Raw deflate, without header and checksum."""
MAX_SHARED_LENGTH: Final = 80
"""Max characters of a string that is shared between objects. Longer strings seldom occur twice."""


class PackingPolicy(NamedTuple):
    """Which objects are settled: they are seldom read, so they are stored packed.

    Attributes:
        is_settled: whether the object in this state is settled.
        note: a text about an object that is readable without unpacking it. Equal notes share memory.
    """

    is_settled: Callable[[Manifest], bool] = lambda _: False
    note: Callable[[Manifest], str] = lambda _: ""


NEVER: Final = PackingPolicy()


class Packer:
    """Packs objects of one type.

    Objects of a type are similar. The first one is the compression dictionary of all, so equal parts take
    almost no memory.
    """

    def __init__(self) -> None:
        self._dictionary = b""

    def pack(self, obj: Manifest) -> bytes:
        text = json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()
        if not self._dictionary:
            self._dictionary = text
        packed = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW, zdict=self._dictionary)
        return packed.compress(text) + packed.flush()

    def unpack(self, packed: bytes) -> Manifest:
        """The packed object."""
        unpacked = zlib.decompressobj(WINDOW, zdict=self._dictionary)
        obj: Manifest = json.loads(unpacked.decompress(packed) + unpacked.flush())
        return obj


class StoredObject:
    """An object in a store, packed or not."""

    __slots__ = ("note", "size", "state", "uid", "version")

    def __init__(self, uid: str, version: int, state: Manifest | bytes, note: str, size: int) -> None:
        self.uid = uid
        self.version = version
        self.state = state
        self.note = note
        self.size = size
        """Bytes of memory of the state, by `footprint`."""


class StoredObjects(Mapping[str, Manifest]):
    """A live view of stored objects that unpacks a value when it is read."""

    def __init__(self, stored: Mapping[str, StoredObject], read: Callable[[str], Manifest]) -> None:
        self._stored = stored
        self._read = read

    def __getitem__(self, key: str) -> Manifest:
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class Unsettled(Iterable[Manifest]):
    """The stored objects that are not packed. Can be iterated repeatedly."""

    def __init__(self, stored: Callable[[], Iterable[StoredObject]]) -> None:
        self._stored = stored

    def __iter__(self) -> Iterator[Manifest]:
        for each in self._stored():
            if not isinstance(each.state, bytes):
                yield each.state


def compact(value: Any) -> Any:
    """A copy that shares its strings with all other objects: field names, uids, times."""
    if isinstance(value, dict):
        return {sys.intern(key): compact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [compact(inner) for inner in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= MAX_SHARED_LENGTH else value
