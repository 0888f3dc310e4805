# SPDX-License-Identifier: Apache-2.0
"""Memory of cached objects: a bound per namespace, compression of settled objects, and garbage collection.

Whoever may create objects in a namespace decides how many there are and how large. Without a bound, one
namespace can use up the memory of the process, which serves all namespaces.

Settled objects are seldom read. As JSON, compressed with another object of their type as dictionary, they
need a tenth of the memory.

Garbage collection stops the event loop only briefly, however many objects the caches hold: see
`exempt_survivors`.
"""

import asyncio
import gc
import json
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

MEBIBYTE: Final = 2**20
GROWTH: Final = 1.25
"""Share of the bound up to which known objects may grow, such as by the condition that reports the bound."""


class NamespaceBound:
    """Counts the memory of the objects of each namespace, in all stores that share the bound.

    Objects without a namespace are not counted, because only administrators create them.

    Args:
        limit_bytes: memory per namespace, as `estimate_bytes` estimates it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def used_bytes(self, namespace: str) -> int:
        return self._used[namespace]

    def left_out(self, namespace: str) -> int:
        """Number of objects of the namespace whose newest state is not stored."""
        return self._left_out[namespace]

    @property
    def exceeded(self) -> int:
        """Number of namespaces with objects that are left out."""
        return len(self._left_out)

    def admits(self, namespace: str, new_bytes: int, old_bytes: int) -> bool:
        """Whether a new state fits.

        Args:
            namespace: namespace of the object.
            new_bytes: memory of the new state.
            old_bytes: memory of the state that it replaces; 0 for a new object.
        """
        limit = self.limit_bytes * (GROWTH if old_bytes else 1)
        is_smaller = new_bytes <= old_bytes
        return not namespace or is_smaller or self._used[namespace] + new_bytes - old_bytes <= limit

    def change(self, namespace: str, by_bytes: int) -> None:
        """Count stored or removed memory."""
        self._used[namespace] += by_bytes
        if not self._used[namespace]:
            del self._used[namespace]

    def leave_out(self, namespace: str) -> None:
        """Count an object whose newest state does not fit."""
        if namespace not in self._left_out:
            logger.error(
                "the objects of namespace %s need more than %d MiB of memory, so some are not read, and the"
                " operator changes nothing there until objects are deleted",
                namespace,
                self.limit_bytes // MEBIBYTE,
            )
        self._left_out[namespace] += 1

    def take_back(self, namespace: str) -> None:
        """An object that was left out is stored or gone."""
        self._left_out[namespace] -= 1
        if not self._left_out[namespace]:
            del self._left_out[namespace]
            logger.info("all objects of namespace %s are read again", namespace)


def estimate_bytes(value: Any) -> int:
    """Approximate bytes of memory of a JSON value, or of a packed object.

    Names of fields are not counted, because objects share them. Values that objects share count for each.
    """
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(map(estimate_bytes, value.values()))
    if isinstance(value, list):
        return size + sum(map(estimate_bytes, value))
    return size


LEVEL: Final = 6
WINDOW: Final = -15
"""Raw deflate, without header and checksum."""
MAX_SHARED_LENGTH: Final = 80
"""Max characters of a string that is shared between objects. Longer strings seldom occur twice."""


class CompressionPolicy(NamedTuple):
    """Which objects are settled: they are seldom read, so they are stored packed.

    Attributes:
        is_settled: whether the object in this state is settled.
        note: a text about an object that is readable without unpacking it. Equal notes share memory.
    """

    is_settled: Callable[[Manifest], bool] = lambda _: False
    note: Callable[[Manifest], str] = lambda _: ""


NEVER_COMPRESSED: Final = CompressionPolicy()


class Compressor:
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
        """Bytes of memory of the state, by `estimate_bytes`."""


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


class UncompressedObjects(Iterable[Manifest]):
    """The stored objects that are not packed. Can be iterated repeatedly."""

    def __init__(self, stored: Callable[[], Iterable[StoredObject]]) -> None:
        self._stored = stored

    def __iter__(self) -> Iterator[Manifest]:
        for each in self._stored():
            if not isinstance(each.state, bytes):
                yield each.state


def intern_strings(value: Any) -> Any:
    """A copy that shares its strings with all other objects: field names, uids, times."""
    if isinstance(value, dict):
        return {sys.intern(key): intern_strings(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [intern_strings(inner) for inner in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= MAX_SHARED_LENGTH else value


COMPLETE_SECONDS: Final = 24 * 3600
"""Time between two complete collections, which take about a second per million objects."""
_OLDEST_GENERATION: Final = 2


def exempt_survivors() -> None:
    """Exempt the present objects from garbage collection, and from now on the survivors of each full one.

    A full collection of Python walks over every object, and nothing else runs meanwhile. Almost all objects
    are the caches', which reference counting frees. Without the survivors, the next collection walks over
    newer objects only.
    """
    gc.freeze()
    if _exempt not in gc.callbacks:
        gc.callbacks.append(_exempt)


def _exempt(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == _OLDEST_GENERATION:
        gc.freeze()


def collect_completely() -> None:
    """Collect among all objects, also the exempted ones, so that exempted cycles are freed."""
    gc.unfreeze()
    gc.collect()


async def collect_completely_every_day() -> None:
    """Call `collect_completely` once per day. Never returns."""
    while True:
        await asyncio.sleep(COMPLETE_SECONDS)
        collect_completely()
