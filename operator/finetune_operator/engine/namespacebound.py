# SPDX-License-Identifier: Apache-2.0
"""A bound of the memory that the cached objects of one namespace need.

Whoever may create objects in a namespace decides how many there are and how large. Without a bound, one
namespace can use up the memory of the process, which serves all.
"""

import logging
import sys
from collections import Counter
from typing import Any, Final

logger = logging.getLogger(__name__)

MEBIBYTE: Final = 2**20
GROWTH: Final = 1.25
"""Share of the bound up to which known objects may grow, such as by the condition that reports the bound."""


class NamespaceBound:
    """Counts the memory of the objects of each namespace, in all stores that share the bound.

    Objects without a namespace are not counted, because only administrators create them.

    Args:
        limit_bytes: memory per namespace, as `footprint` estimates it.
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


def footprint(value: Any) -> int:
    """Approximate bytes of memory of a JSON value, or of a packed object.

    Names of fields are not counted, because objects share them. Values that objects share count for each.
    """
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(map(footprint, value.values()))
    if isinstance(value, list):
        return size + sum(map(footprint, value))
    return size
