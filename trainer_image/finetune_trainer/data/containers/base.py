# SPDX-License-Identifier: Apache-2.0
"""Interface of containers, which read a file into raw records with their positions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.row_problems import Code, InvalidRecord, Issue, RowPosition, field_names

TableName = Literal["CSV", "TSV", "Parquet"]
ContainerName = Literal["JSON Lines", "JSON list", "CSV", "TSV", "Parquet", "Excel"]
TABLES: Final[tuple[TableName, ...]] = get_args(TableName)

Fields = dict[str, Any]
"""Fields of a record: JSON values; texts in CSV, TSV and Excel."""


@dataclass(frozen=True, slots=True)
class Header:
    """Columns of a table, before its records."""

    columns: tuple[str, ...]


@dataclass(slots=True)  # not frozen: creating it would take longer than reading it
class RawRecord:
    """One record as in the file."""

    position: RowPosition
    fields: Fields


Line = tuple[int, bytes]
"""A record before decoding: its line number, from 1, and the line."""


class Container(Protocol):
    """Reads one kind of file."""

    def __call__(
        self, file: SourceFile, name: str | None
    ) -> Iterator[Header | RawRecord | Line | InvalidRecord]:
        """Each record, or its issues; tables yield their header first. `name` is the file for positions."""


def repeated_column(columns: Sequence[str]) -> Issue | None:
    """The issue of a table in which two columns have the same name."""
    repeated = sorted(name for name, count in Counter(columns).items() if count > 1)
    if not repeated:
        return None
    what = f"the header has {field_names(repeated, 'names')} twice"
    return Issue(Code.HEADER, what, "each name once", "rename one of the columns")


def table_of(container: ContainerName) -> TableName | None:
    """The kind of table in a container; None if it holds JSON. A workbook counts as its export to CSV."""
    if container == "Excel":
        return "CSV"
    return next((table for table in TABLES if table == container), None)
