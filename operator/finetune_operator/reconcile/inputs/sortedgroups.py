# SPDX-License-Identifier: Apache-2.0
"""Order within groups of objects, such as the versions of a Dataset, kept up to date with each change."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from finetune_operator.plan import Manifest

G = TypeVar("G", bound=Hashable)
P = TypeVar("P", bound=tuple[Any, ...])


class SortedGroups(Generic[G, P]):
    """Keeps a sorted list of places per group. A change and a question read one list by bisection.

    Args:
        place: returns the group of an object and its place in it, which no other object has; None for an
            object that belongs to no group.
    """

    def __init__(self, place: Callable[[Manifest], tuple[G, P] | None]) -> None:
        self._place = place
        self._groups: dict[G, list[P]] = {}

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of an object."""
        before, after = (None if state is None else self._place(state) for state in (old, new))
        if before == after:
            return
        if before is not None:
            group, place = before
            places = self._groups[group]
            del places[bisect_left(places, place)]
            if not places:
                del self._groups[group]
        if after is not None:
            group, place = after
            insort(self._groups.setdefault(group, []), place)

    def first(self, group: G) -> P | None:
        """The first place of a group."""
        places = self._groups.get(group)
        return places[0] if places else None

    def number_after(self, group: G, place: P) -> int:
        """Number of places of the group after this one."""
        places = self._groups.get(group, [])
        return len(places) - bisect_right(places, place)
