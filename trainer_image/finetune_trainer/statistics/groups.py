# SPDX-License-Identifier: Apache-2.0
"""Rows that are not independent, because they share a group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Groups:
    """Groups that the split kept together, because their rows are not independent."""

    column: str
    """Column of the source that names the group of a row."""
    of_rows: Mapping[int, str] | None
    """By number of the row; None if the dataset does not keep the column."""

    @classmethod
    def of(cls, column: str, kept: Iterable[Mapping[str, str]]) -> "Groups":
        """Read the groups of all rows of a split from the kept columns of each."""
        groups = {number: columns.get(column) for number, columns in enumerate(kept, 1)}
        known = {number: group for number, group in groups.items() if group is not None}
        return cls(column, known if len(known) == len(groups) else None)

    def shared(self, numbers: Sequence[int]) -> list[str] | None:
        """Return the group of each of these rows; None if no two share one, or the groups are unknown."""
        if self.of_rows is None:
            return None
        groups = [self.of_rows[number] for number in numbers]
        return None if len(set(groups)) == len(groups) else groups
