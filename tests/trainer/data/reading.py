# SPDX-License-Identifier: Apache-2.0
"""Helpers that write files of rows in various formats and read them."""

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import zstandard
from pyarrow import parquet

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.duplicates import Rows
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.reading import BatchReader, LocatedRow, SourceReader, UnusedFields
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Code, InvalidRecord
from finetune_trainer.rows import Row

DEFAULT = Recipe()


@dataclass(frozen=True)
class Outcome:
    """Everything that was read."""

    format: DataFormat | None
    items: list[LocatedRow | InvalidRecord]
    unused: tuple[str, ...]
    digests: list[str]

    @property
    def raw_rows(self) -> list[RawRow]:
        return [item.raw for item in self.items if isinstance(item, LocatedRow)]

    @property
    def rows(self) -> list[Row]:
        return [raw.row for raw in self.raw_rows]

    @property
    def dicts(self) -> list[dict[str, Any]]:
        return [row.to_dict() for row in self.rows]

    @property
    def invalid(self) -> list[InvalidRecord]:
        return [item for item in self.items if isinstance(item, InvalidRecord)]

    @property
    def problems(self) -> list[str]:
        return [f"{invalid.position}: {issue}" for invalid in self.invalid for issue in invalid.issues]

    @property
    def codes(self) -> list[Code]:
        return [issue.code for invalid in self.invalid for issue in invalid.issues]


def read_files(folder: Path, files: Mapping[str, str | bytes], recipe: Recipe = DEFAULT) -> Outcome:
    """Write files with these names and contents, and read them in this order."""
    sources = []
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        sources.append(SourceFile(path))
    reading, reader, unused = SourceReader(sources, recipe), BatchReader(recipe), UnusedFields()
    items: list[LocatedRow | InvalidRecord] = []
    for batch in reading:
        items += reader.read(batch)
        if reader.form is not None:
            unused.add(reader.form.unused, reader.form.known)
    return Outcome(reading.format, items, unused.names, [source.digest for source in sources])


def read(folder: Path, content: str | bytes, recipe: Recipe = DEFAULT, name: str = "rows") -> Outcome:
    """Write and read one file, whose name does not show its content."""
    return read_files(folder, {name: content}, recipe)


def json_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet_bytes(rows: list[dict[str, Any]], **options: Any) -> bytes:
    content = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), content, **options)
    return content.getvalue()


def gzipped(content: str | bytes) -> bytes:
    return gzip.compress(content.encode() if isinstance(content, str) else content)


def zstandarded(content: str | bytes) -> bytes:
    return zstandard.compress(content.encode() if isinstance(content, str) else content)


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(count)]


def turns(*contents: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, Any]]:
    return [{"role": roles[index % len(roles)], "content": content} for index, content in enumerate(contents)]


def chat(*contents: str, roles: tuple[str, ...] = ("user", "assistant"), **fields: Any) -> dict[str, Any]:
    return {"messages": turns(*contents, roles=roles), **fields}


def reader(rows: Sequence[Row]) -> Rows:
    """Rows that can be read again by their numbers."""
    return lambda wanted: ((number, row) for number, row in enumerate(rows) if wanted[number])
