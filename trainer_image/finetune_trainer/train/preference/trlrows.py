"""Encoded rows with the columns that TRL's trainers and collators read."""

from collections.abc import Sequence
from typing import Any, Self

from datasets import Dataset
from typing_extensions import override

TRLRow = dict[str, Any]
"""The columns of one row."""


class TokenizedRows(Dataset):  # type: ignore[misc] # datasets has no types
    """Tokenized rows. TRL tokenizes with `map` and `filter`, so these do nothing here."""

    @classmethod
    def of(cls, rows: Sequence[TRLRow]) -> Self:
        """Create the rows in memory, without a cache on disk."""
        made: Self = cls.from_list(list(rows))
        return made

    @override
    def map(self, *args: Any, **kwargs: Any) -> Self:
        return self

    @override
    def filter(self, *args: Any, **kwargs: Any) -> Self:
        return self
