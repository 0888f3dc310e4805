# SPDX-License-Identifier: Apache-2.0
"""CSV as in RFC 4180, with commas or semicolons, and TSV; both with a header, in UTF-8.

Texts with separators or line ends are in double quotes. Spreadsheets in the cloud write TSV without quoting,
so in TSV a quote is text unless it begins a cell and another one ends the same cell.
"""

import codecs
import csv
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from finetune_trainer.data.containers.base import Header, RawRecord, repeated_column
from finetune_trainer.data.containers.tabseparated import QUOTE, UNCLOSED, AmbiguousQuote, TabReader
from finetune_trainer.data.files import MAX_ROW_BYTES, SourceFile
from finetune_trainer.data.rowproblems import Code, InvalidRecord, Issue, RowPosition
from finetune_trainer.data.textchecks import SURROGATE, field_name, field_names

SEPARATORS: Final = {",": "commas", "\t": "tabs", ";": '";"', "|": '"|"'}
RULES: Final = {
    ",": ("CSV", "RFC 4180"),
    ";": ("CSV", "RFC 4180 with semicolons"),
    "\t": ("TSV", "RFC 4180 with tabs"),
}
HEADER_BYTES: Final = 1 << 16
"""Number of first bytes in which the separator of CSV is looked for."""


def read_csv(file: SourceFile, name: str | None) -> Iterator[Header | RawRecord | InvalidRecord]:
    """The header, then each record, separated by commas, or by semicolons as in Excel of many countries."""
    return _read(file, name, _separator(file.head(HEADER_BYTES)))


def read_tsv(file: SourceFile, name: str | None) -> Iterator[Header | RawRecord | InvalidRecord]:
    """The header, then each record, separated by tabs."""
    return _read(file, name, "\t")


def _read(file: SourceFile, name: str | None, separator: str) -> Iterator[Header | RawRecord | InvalidRecord]:
    """Each record below the header, or its issue. Lines without any text are not records."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _decoded(file.lines())
    reader: _RowReader = csv.reader(lines, strict=True, delimiter=separator)
    if separator == "\t":
        reader = TabReader(lines)
    header: list[str] | None = None
    number = 0
    while True:
        position = (
            RowPosition(name, number + 1, reader.line_num + 1) if header is not None else RowPosition(name)
        )
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            number += 1
            if isinstance(error, AmbiguousQuote) and header is not None:
                yield InvalidRecord(position, (error.issue(),))
                continue
            ends_file = header is None or str(error).startswith(UNCLOSED)
            yield InvalidRecord(position, (_syntax_issue(error, separator, ends_file=ends_file),), ends_file)
            if ends_file:
                return
            continue
        if not any(values):
            continue
        if header is None:
            header = values
            if issue := _header_issue(header, separator):
                yield InvalidRecord(position, (issue,), ends_file=True)
                return
            yield Header(tuple(header))
            continue
        number += 1
        issue = _values_issue(header, values, separator)
        yield (
            RawRecord(position, dict(zip(header, values, strict=True)))
            if issue is None
            else InvalidRecord(position, (issue,))
        )


def _separator(head: bytes) -> str:
    """The separator of CSV: semicolons if they divide the header better than commas."""
    header = next(filter(None, map(bytes.strip, head.removeprefix(codecs.BOM_UTF8).splitlines())), b"")
    text = header.decode(errors="replace")

    def fit(separator: str) -> tuple[bool, int]:
        names = next(csv.reader([text], delimiter=separator), [])
        return not any(QUOTE in name for name in names), len(names)

    return ";" if fit(";") > fit(",") else ","


def _header_issue(header: list[str], separator: str) -> Issue | None:
    """The issue of a header in any format."""
    # Of commas and semicolons, the better one was chosen.
    chosen = ",;" if separator in ",;" else separator
    others = (mark for mark in SEPARATORS if mark not in chosen and _separates(mark, header))
    if other := next(others, None):
        expected = SEPARATORS[separator]
        return Issue(
            Code.HEADER,
            f"the header is separated by {SEPARATORS[other]}",
            expected,
            f"export it again separated by {expected}",
        )
    if any(SURROGATE.search(name) for name in header):
        what = f"the header is not UTF-8: {field_names(header, 'names')}"
        return Issue(Code.ENCODING, what, "UTF-8", "save the file as UTF-8")
    return repeated_column(header)


def _separates(mark: str, header: list[str]) -> bool:
    """Whether a mark is more frequent than the separator, so that it is the actual separator."""
    return sum(name.count(mark) for name in header) >= len(header)


def _values_issue(header: list[str], values: list[str], separator: str) -> Issue | None:
    if len(values) != len(header):
        more = f"put texts with {SEPARATORS[separator]} in double quotes"
        return Issue(
            Code.FIELD_COUNT,
            f"has {len(values)} fields",
            f"{len(header)}, as in the header",
            more if len(values) > len(header) else "add the missing fields",
        )
    for name, value in zip(header, values, strict=True):
        if not value.isascii() and (found := SURROGATE.search(value)):
            byte = ord(found[0]) & 0xFF
            return Issue(
                Code.ENCODING,
                f"{field_name(name)} has the byte 0x{byte:02X}, which is not UTF-8",
                "UTF-8",
                "save the file as UTF-8",
                column=name,
            )
    return None


def _syntax_issue(error: csv.Error, separator: str, *, ends_file: bool) -> Issue:
    if ends_file:
        return Issue(
            Code.SYNTAX,
            f"a quote that opens here is not closed ({error}); nothing after it was read",
            "texts in pairs of double quotes",
            'close it; write a quote inside a text as ""',
        )
    name, rule = RULES[separator]
    return Issue(Code.SYNTAX, f"not valid {name}: {error}", rule, 'write a quote inside a quoted text as ""')


class _RowReader(Protocol):
    """Reads rows, and counts their lines."""

    @property
    def line_num(self) -> int:
        """Number of lines of the rows so far."""

    def __next__(self) -> list[str]:
        """The next row. Raises csv.Error."""


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_ROW_BYTES:
            raise csv.Error(f"{UNCLOSED[0]} ({MAX_ROW_BYTES})")
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        # A byte that is not UTF-8 becomes a surrogate, which no valid text has: its record is invalid.
        yield content.decode(errors="surrogateescape")
