"""Encoded rows in the columns that TRL's trainers and collators read."""

from collections.abc import Sequence
from typing import Any, Self

from datasets import Dataset
from typing_extensions import override

TRLRow = dict[str, Any]


class TokenizedRows(Dataset):  # type: ignore[misc] # datasets has no types
    """Rows that TRL has nothing to prepare of: it tokenizes by `map` and `filter`, and these are tokens."""

    @classmethod
    def of(cls, rows: Sequence[TRLRow]) -> Self:
        """In memory; nothing is written to a cache."""
        made: Self = cls.from_list(list(rows))
        return made

    @override
    def map(self, *args: Any, **kwargs: Any) -> Self:
        return self

    @override
    def filter(self, *args: Any, **kwargs: Any) -> Self:
        return self
