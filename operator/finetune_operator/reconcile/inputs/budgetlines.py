# SPDX-License-Identifier: Apache-2.0
"""Runs and Evaluations that wait for a budget, in the order in which they start."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable

from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.indexes import namespace_of, waits_for_budget_of

Line = tuple[str, str]
"""Namespace and ComputeProfile, or DEFAULT_PROFILE."""
Place = tuple[str, Key]
"""Creation time and key: the oldest object is the first of its line."""


class BudgetLines:
    """Keeps one entry per object that waits."""

    def __init__(self) -> None:
        self._lines: defaultdict[Line, list[Place]] = defaultdict(list)

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of a run or Evaluation."""
        before, after = _entry(old), _entry(new)
        if before == after:
            return
        if before is not None:
            line, place = before
            places = self._lines[line]
            position = bisect_left(places, place)
            if places[position : position + 1] == [place]:
                del places[position]
            if not places:
                del self._lines[line]
        if after is not None:
            line, place = after
            insort(self._lines[line], place)

    def first(self, namespace: str, profiles: Iterable[str]) -> Place | None:
        """The oldest object of the namespace that waits for the budget of one of these names."""
        lines = (self._lines.get((namespace, profile), ()) for profile in profiles)
        return min((line[0] for line in lines if line), default=None)


def place_of(obj: Manifest) -> Place:
    """The place of a run or Evaluation in a line."""
    metadata = obj["metadata"]
    return metadata.get("creationTimestamp", ""), Key(obj["kind"], namespace_of(obj), metadata["name"])


def _entry(obj: Manifest | None) -> tuple[Line, Place] | None:
    profile = None if obj is None else waits_for_budget_of(obj)
    return None if obj is None or profile is None else ((namespace_of(obj), profile), place_of(obj))
