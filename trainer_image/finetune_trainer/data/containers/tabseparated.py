# SPDX-License-Identifier: Apache-2.0
"""Rows of TSV, whose writers quote cells or do not: a quote is text unless another one ends the same cell."""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from finetune_trainer.data.files import MAX_ROW_BYTES, FileDamaged, FileUnreadable
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.unpacking import TooLarge

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
