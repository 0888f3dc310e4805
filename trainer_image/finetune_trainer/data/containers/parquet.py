# SPDX-License-Identifier: Apache-2.0
"""Parquet, read in batches of rows.

Arrow has one type for all rows of a column, so each struct has the fields of the structs in all other rows,
as null. Tools and the arguments of calls would have parameters that their source never had, so fields of
structs that are null are left out. Fields of JSON texts stay.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data.containers.base import Fields, Header, RawRecord, repeated_column
from finetune_trainer.data.files import GZIP, ZSTD, SourceFile
from finetune_trainer.data.row_problems import (
    Code,
    InvalidRecord,
    Issue,
    RowPosition,
    field_name,
    mark_quoted,
)

if TYPE_CHECKING:
    import pyarrow

MAGIC: Final = b"PAR1"
BATCH_ROWS: Final = 1000


def read(file: SourceFile, name: str | None) -> Iterator[Header | RawRecord | InvalidRecord]:
    """The columns, then each row. Lists and structs become lists and objects, dates and decimals texts."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    with file.as_stored() as content:
        if issue := _magic_issue(content.read(len(MAGIC))):
            yield InvalidRecord(RowPosition(name), (issue,), ends_file=True)
            return
        content.seek(0)
        try:
            # pre_buffer would hold whole row groups in memory.
            table = ParquetFile(content, pre_buffer=False, page_checksum_verification=True)
            columns = table.schema_arrow.names
            if issue := repeated_column(columns):
                yield InvalidRecord(RowPosition(name), (issue,), ends_file=True)
                return
            yield Header(tuple(columns))
            for batch in table.iter_batches(BATCH_ROWS):
                for fields in _records(batch):
                    number += 1
                    position = RowPosition(name, number)
                    yield (
                        InvalidRecord(position, (fields,))
                        if isinstance(fields, Issue)
                        else RawRecord(position, fields)
                    )
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
            # For damaged content pyarrow also raises OSError, but without an errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield InvalidRecord(RowPosition(name), (_damage(error, number),), ends_file=True)


def _magic_issue(magic: bytes) -> Issue | None:
    if magic == MAGIC:
        return None
    packed = "gzip" if magic.startswith(GZIP) else "zstd" if magic == ZSTD else None
    if packed:
        return Issue(
            Code.FILE_UNKNOWN,
            f"the file is compressed by {packed}",
            "Parquet without it, because Parquet compresses its columns itself",
            f"decompress it ({'gunzip' if packed == 'gzip' else 'unzstd'})",
        )
    return Issue(
        Code.FILE_UNKNOWN,
        "the file is not Parquet",
        "Parquet, which begins with PAR1",
        "leave format out, or set the right one",
    )


def _damage(error: Exception, number: int) -> Issue:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    used = f"no row after row {number} was used" if number else "none of its rows was used"
    return Issue(
        Code.FILE_DAMAGED,
        f"the file is damaged{mark_quoted(f': {reason}', '')}; {used}",
        "a complete Parquet file",
        "export or copy the file again",
    )


def _records(batch: "pyarrow.RecordBatch") -> Iterator[Fields | Issue]:
    import pyarrow

    plain = pyarrow.RecordBatch.from_arrays(list(map(_plain, batch.columns)), names=batch.schema.names)
    try:
        records: list[Fields] = plain.to_pylist()
    except (ValueError, OverflowError):
        # Row by row, to find the values that cannot be read.
        for index in range(plain.num_rows):
            yield _record(plain, index)
    else:
        schema = zip(batch.schema.names, batch.schema.types, strict=True)
        nested = [name for name, kind in schema if pyarrow.types.is_nested(kind)]
        for record in records:
            yield record | {name: _without_nulls(record[name]) for name in nested}


def _without_nulls(value: Any) -> Any:
    """The value without the fields of structs that are null."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _record(batch: "pyarrow.RecordBatch", index: int) -> Fields | Issue:
    fields: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = _without_nulls(column[index].as_py())
        except UnicodeDecodeError as error:
            return Issue(
                Code.ENCODING,
                f"{field_name(name)} has the byte 0x{error.object[error.start]:02X}, which is not UTF-8",
                "UTF-8",
                "write the texts as UTF-8",
                column=name,
            )
        except (ValueError, OverflowError) as error:
            return Issue(
                Code.FIELD_TYPE,
                f"{field_name(name)} cannot be read{mark_quoted(f' ({error})', '')}",
                "texts, numbers, lists and structs",
                f"write {field_name(name)} as text",
                column=name,
            )
    return fields


def _plain(column: "pyarrow.Array[Any]") -> "pyarrow.Array[Any]":
    """Dates, times and decimals as texts, if pyarrow can convert them."""
    import pyarrow

    if not (pyarrow.types.is_temporal(column.type) or pyarrow.types.is_decimal(column.type)):
        return column
    try:
        return column.cast(pyarrow.string())
    except pyarrow.ArrowException:
        return column
