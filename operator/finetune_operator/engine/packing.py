"""Objects that are seldom read, in a tenth of the memory: JSON, compressed by what another one is like."""

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from finetune_operator.plan import Manifest

LEVEL: Final = 6
WINDOW: Final = -15
"""Raw deflate: neither header nor checksum."""
MAX_SHARED_LENGTH: Final = 80
"""Characters; a longer text is seldom said twice."""


class PackingPolicy(NamedTuple):
    """Which objects are held packed, because they are seldom read.

    Attributes:
        is_settled: whether this state of an object is.
        note: what is known of any object without unpacking it; equal notes are one object.
    """

    is_settled: Callable[[Manifest], bool] = lambda _: False
    note: Callable[[Manifest], str] = lambda _: ""


NEVER: Final = PackingPolicy()


class Packer:
    """Packs objects of one type.

    They are much alike, so the first is the dictionary of all: what is equal costs next to nothing.
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
        """The object, equal to what was packed."""
        unpacked = zlib.decompressobj(WINDOW, zdict=self._dictionary)
        obj: Manifest = json.loads(unpacked.decompress(packed) + unpacked.flush())
        return obj


class StoredObject:
    """One object as it is held: as it is, or packed."""

    __slots__ = ("note", "state", "uid", "version")

    def __init__(self, uid: str, version: int, state: Manifest | bytes, note: str) -> None:
        self.uid = uid
        self.version = version
        self.state = state
        self.note = note


class StoredObjects(Mapping[str, Manifest]):
    """A live mapping whose values are unpacked when they are read."""

    def __init__(self, held: Mapping[str, StoredObject], read: Callable[[str], Manifest]) -> None:
        self._held = held
        self._read = read

    def __getitem__(self, key: str) -> Manifest:
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Unsettled(Iterable[Manifest]):
    """Those of the held objects that are not packed; may be read again and again."""

    def __init__(self, held: Callable[[], Iterable[StoredObject]]) -> None:
        self._held = held

    def __iter__(self) -> Iterator[Manifest]:
        for each in self._held():
            if not isinstance(each.state, bytes):
                yield each.state


def compact(value: Any) -> Any:
    """A copy whose strings are shared with all other objects: names of fields, uids, times."""
    if isinstance(value, dict):
        return {sys.intern(key): compact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [compact(inner) for inner in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= MAX_SHARED_LENGTH else value
