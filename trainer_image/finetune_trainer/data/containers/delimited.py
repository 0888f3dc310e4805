# SPDX-License-Identifier: Apache-2.0
"""Delimited text with a header, in UTF-8: CSV as in RFC 4180, with commas or semicolons, and TSV.

Texts with separators or line ends are in double quotes. Spreadsheets in the cloud write TSV without quoting,
so in TSV a quote is text unless it begins a cell and another one ends the same cell.
"""

import codecs
import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from finetune_trainer.data.containers.base import Header, RawRecord, repeated_column
from finetune_trainer.data.files import MAX_ROW_BYTES, FileDamaged, FileUnreadable, SourceFile, TooLarge
from finetune_trainer.data.row_problems import (
    SURROGATE,
    Code,
    InvalidRecord,
    Issue,
    RowPosition,
    field_name,
    field_names,
)

QUOTE: Final = '"'
UNCLOSED: Final = ("field larger than field limit", "unexpected end of data")
"""Messages of the csv module about an unclosed quote: beyond a limit, or at the end of the file."""
MAX_LINES_AHEAD: Final = 100
MAX_CHARACTERS_AHEAD: Final = 1 << 20
"""Maximum part of TSV to look at for the quote that ends a cell whose lines also are complete rows."""


class AmbiguousQuote(csv.Error):
    """Lines of TSV that can be one row with a quoted cell, or several rows of which two have a quote."""

    def __init__(self, closing_line: int) -> None:
        """`closing_line` is the line with the second quote, from 1."""
        super().__init__()
        self._closing_line = closing_line

    def issue(self) -> Issue:
        """The issue of the row in which the quote opens."""
        return Issue(
            Code.SYNTAX,
            f"a quote opens here and closes in line {self._closing_line},"
            " but these lines are complete rows too",
            "quotes that open and close in the same cell",
            "remove the quotes, or export the table as CSV",
        )


@dataclass(slots=True)
class _Line:
    """A line of TSV."""

    text: str
    """The line with its line end."""
    cells: list[str]
    """Its cells, if a quote that does not end the same cell is text."""
    opens: bool = False
    """Whether a quote begins a cell and none after it closes in this line."""
    closes: Literal["no", "in a text", "at the end of a cell"] = "no"
    """What the line has for a quote that opened in an earlier line."""


class TabReader:
    """Reads rows of TSV. Raises csv.Error like the reader of the csv module, and then continues."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.line_num = 0
        """Number of lines of the rows so far."""
        self._lines = lines
        self._ahead: deque[_Line] = deque()
        self._end: Exception | None = None
        """What ended the lines, to be raised after those ahead."""
        self._columns: int | None = None

    def __next__(self) -> list[str]:
        line = self._next()
        values = line.cells
        if len(values) != self._columns:
            values = self._quoted(line) if line.opens else _quoted_cells(line.text) or values
        elif line.opens:
            lines = self._lines_of_cell()
            if lines is None:
                values = self._quoted(line)
            elif lines:
                raise AmbiguousQuote(self.line_num + lines)
        if QUOTE not in line.text and "\r" in "".join(values):
            raise csv.Error("a line end (CR) in a text without quotes")
        if self._columns is None and any(values):
            self._columns = len(values)
        return values

    def _lines_of_cell(self) -> int | None:
        """What a quote means that opens in a complete row and does not close in its line.

        0: it is text. None: it opens a cell, because a line up to the quote that closes it is not a complete
        row or has a doubled quote. Otherwise both are possible: the number of lines to the quote that closes.
        """
        characters = 0
        for number in range(1, MAX_LINES_AHEAD + 1):
            line = self._peek(number)
            if line is None or line.closes == "in a text":
                return 0
            is_row = len(line.cells) == self._columns and QUOTE * 2 not in line.text
            if line.closes == "at the end of a cell":
                return number if is_row else None
            characters += len(line.text)
            if not is_row and not line.text.isspace():
                return None
            if characters > MAX_CHARACTERS_AHEAD:
                break
        return 0

    def _quoted(self, line: _Line) -> list[str]:
        """The cells of a row as in RFC 4180, with further lines of quoted cells."""
        values: list[str] = []
        text, start = line.text, 0
        while True:
            if not text.startswith(QUOTE, start):
                end = text.find("\t", start)
                values.append(text[start:end] if end >= 0 else text[start:].rstrip("\r\n"))
                if end < 0:
                    return values
                start = end + 1
                continue
            parts, size, start = [], 0, start + 1
            while (end := _closing(text, start)) < 0:
                parts.append(text[start:])
                size += len(text) - start
                if size > MAX_ROW_BYTES:
                    raise csv.Error(f"{UNCLOSED[0]} ({MAX_ROW_BYTES})")
                try:
                    text, start = self._next().text, 0
                except StopIteration:
                    raise csv.Error(UNCLOSED[1]) from None
            values.append("".join((*parts, text[start:end])).replace(QUOTE * 2, QUOTE))
            if not _ends_cell(text, end + 1):
                raise csv.Error(f"'\t' expected after '{QUOTE}'")
            if not text.startswith("\t", end + 1):
                return values
            start = end + 2

    def _next(self) -> _Line:
        if self._ahead:
            line = self._ahead.popleft()
        elif self._end is not None:
            raise self._end
        else:
            line = _line(next(self._lines))
        self.line_num += 1
        return line

    def _peek(self, number: int) -> _Line | None:
        """The line after the next `number` - 1 lines; None if there is none."""
        while len(self._ahead) < number:
            if self._end is not None:
                return None
            try:
                self._ahead.append(_line(next(self._lines)))
            except (StopIteration, csv.Error, FileDamaged, FileUnreadable, TooLarge) as error:
                self._end = error
        return self._ahead[number - 1]


def _line(text: str) -> _Line:
    if QUOTE not in text:
        return _Line(text, text.rstrip("\r\n").split("\t"))
    cells, opens, start = [], False, 0
    for cell in text.rstrip("\r\n").split("\t"):
        if cell.startswith(QUOTE):
            end = _closing(cell, 1)
            is_quoted = end == len(cell) - 1 and end > 0
            # The closing quote may be in a later cell of the line.
            opens = opens or (end < 0 and _closing(text, start + 1) < 0)
            cells.append(cell[1:-1].replace(QUOTE * 2, QUOTE) if is_quoted else cell)
        else:
            cells.append(cell)
        start += len(cell) + 1
    first = _closing(text, 0)
    if first < 0:
        return _Line(text, cells, opens)
    return _Line(text, cells, opens, "at the end of a cell" if _ends_cell(text, first + 1) else "in a text")


def _quoted_cells(text: str) -> list[str] | None:
    """The cells of a line in which quoted cells have tabs; None if it is not valid."""
    try:
        return next(csv.reader([text], strict=True, delimiter="\t"), None)
    except csv.Error:
        return None


def _closing(text: str, start: int) -> int:
    """The index of the first quote from `start` that is not doubled; -1 if there is none."""
    end = text.find(QUOTE, start)
    while end >= 0 and text.startswith(QUOTE, end + 1):
        end = text.find(QUOTE, end + 2)
    return end


def _ends_cell(text: str, at: int) -> bool:
    return text.startswith("\t", at) or not text[at : at + 3].strip("\r\n")


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
