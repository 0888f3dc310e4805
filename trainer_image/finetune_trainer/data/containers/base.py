"""What all containers give: records, as they were written, each with its place."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.rowproblems import Code, InvalidRecord, Issue, RowPosition
from finetune_trainer.data.textchecks import field_names

TableName = Literal["CSV", "TSV", "Parquet"]
ContainerName = Literal["JSON Lines", "JSON list", "CSV", "TSV", "Parquet"]
TABLES: Final[tuple[TableName, ...]] = get_args(TableName)

Fields = dict[str, Any]
"""A record's fields: JSON values, of CSV and TSV texts."""


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a table, before its records."""

    columns: tuple[str, ...]


@dataclass(slots=True)  # not frozen, which would take longer to make than to read
class RawRecord:
    """One record."""

    position: RowPosition
    fields: Fields


Line = tuple[int, bytes]
"""A record that is not decoded: the number of its line, from 1, and the line."""


class Container(Protocol):
    """Reads one kind of file."""

    def __call__(
        self, file: SourceFile, name: str | None
    ) -> Iterator[Header | RawRecord | Line | InvalidRecord]:
        """Every record, or what is wrong with it; tables give their header first. `name` is for places."""


def repeated_column(columns: Sequence[str]) -> Issue | None:
    """The issue of a table that has two columns of one name."""
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if not twice:
        return None
    what = f"the header has {field_names(twice, 'names')} twice"
    return Issue(Code.HEADER, what, "each name once", "rename one of the columns")


def table_of(container: ContainerName) -> TableName | None:
    """The container where it is a table; None where it holds JSON."""
    return next((table for table in TABLES if table == container), None)
