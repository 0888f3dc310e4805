# SPDX-License-Identifier: Apache-2.0
"""The first visible sheet of an Excel workbook (.xlsx): a table of texts, as its export to CSV.

The first row with a cell is the header. Formulas count by their stored values, dates become ISO 8601, and a
number has the leading zeros that its cell shows. Empty rows are not records. A merged area has its value in
its first cell only.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from finetune_trainer.data.containers.base import Header, RawRecord, repeated_column
from finetune_trainer.data.containers.workbook import (
    MAX_SHEET_BYTES,
    Archive,
    Workbook,
    WorkbookRefused,
    XmlEvents,
    damaged,
    too_large,
    unescape,
    whole_number,
)
from finetune_trainer.data.files import MAX_ROW_BYTES, SourceFile
from finetune_trainer.data.row_problems import (
    Code,
    InvalidRecord,
    Issue,
    RowPosition,
    field_name,
    mark_quoted,
)

MAGIC: Final = b"PK\x03\x04"
MAX_ROWS: Final = 1 << 20
MAX_COLUMNS: Final = 1 << 14
MAX_CELLS: Final = 20_000_000
ADDRESS: Final = re.compile("([A-Z]{1,3})([1-9][0-9]{0,6})?")

Cell = str | Issue
"""The text of a cell, or why it has none."""
SheetRow = tuple[int, dict[int, Cell]]
"""Number of a row, from 1, and its cells that are not empty by column, from 1."""


class _Rows(XmlEvents):
    """Collects the rows of a sheet. `rows` has those that are complete; the caller removes them."""

    def __init__(self, workbook: Workbook) -> None:
        self.rows: list[SheetRow] = []
        self._texts, self._formats = workbook.texts, workbook.formats
        self._row = self._row_count = self._cell_count = 0
        self._row_characters = 0
        self._cells: dict[int, Cell] = {}
        self._column = self._style = 0
        self._kind = ""
        self._parts: list[str] = []
        self._is_read = self._has_formula = False
        self._phonetic = 0

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._is_read = False
        if name == "c":
            self._begin_cell(attributes)
        elif name == "v":
            self._is_read = True
        elif name == "f":
            self._has_formula = True
        elif name == "t":
            self._is_read = not self._phonetic
        elif name == "rPh":
            self._phonetic += 1
        elif name == "row":
            self._begin_row(attributes.get("r"))

    def text(self, text: str) -> None:
        if self._is_read:
            self._count_characters(len(text))
            self._parts.append(text)

    def end(self, name: str) -> None:
        self._is_read = False
        if name == "c":
            cell = self._cell()
            if isinstance(cell, Issue) or (cell and not cell.isspace()):
                self._cells[self._column] = cell
        elif name == "row":
            self.rows.append((self._row, self._cells))
        elif name == "rPh":
            self._phonetic -= 1
        elif name == "sheetData":
            self.is_done = True

    def _begin_row(self, number: str | None) -> None:
        self._row_count += 1
        self._row = self._row + 1 if number is None else whole_number(number)
        if not 0 < self._row <= MAX_ROWS or self._row_count > MAX_ROWS:
            raise damaged(f"its sheet has a row outside of 1 to {MAX_ROWS}")
        self._cells, self._column, self._row_characters = {}, 0, 0

    def _begin_cell(self, attributes: Mapping[str, str]) -> None:
        self._cell_count += 1
        if self._cell_count > MAX_CELLS:
            raise too_large(f"has more than {MAX_CELLS:,} cells")
        address = attributes.get("r")
        self._column = self._column + 1 if address is None else _column_of(address)
        if not 0 < self._column <= MAX_COLUMNS:
            raise damaged(f"its sheet has a column outside of 1 to {MAX_COLUMNS}")
        self._style = whole_number(attributes.get("s", "0"))
        self._kind = attributes.get("t", "n")
        self._parts = []
        self._has_formula = False

    def _count_characters(self, count: int) -> None:
        self._row_characters += count
        if self._row_characters > MAX_ROW_BYTES:
            issue = Issue(
                Code.ROW_TOO_LONG,
                f"row {self._row} of the sheet is longer than {MAX_ROW_BYTES >> 20} MiB",
                "shorter texts",
                "save the sheet as CSV",
            )
            raise WorkbookRefused(issue)

    def _cell(self) -> Cell:
        text = "".join(self._parts)
        # The text of a formula can be empty.
        if self._has_formula and not text.strip() and self._kind != "str":
            return self._issue("is a formula without a stored value", "open the file in Excel and save it")
        match self._kind:
            case "s":
                return self._shared(text)
            case "e":
                shown = mark_quoted(f" {text[:20]}", "")
                return self._issue(
                    f"is the error{shown}", "correct the formula, or delete the column if it is unused"
                )
            case "b":
                return "TRUE" if text.strip() == "1" else "FALSE"
            case "n":
                return self._formats.text(text.strip(), self._style)
            case "d":
                return text
            case _:
                return unescape(text)

    def _shared(self, index: str) -> str:
        index = index.strip()
        if not index:
            return ""
        number = whole_number(index)
        if not 0 <= number < len(self._texts):
            raise damaged(f"{column_letters(self._column)}{self._row} refers to a missing text")
        text = self._texts[number]
        self._count_characters(len(text))
        return text

    def _issue(self, what: str, fix: str) -> Issue:
        return Issue(Code.FIELD_VALUE, f"{column_letters(self._column)}{self._row} {what}", "a value", fix)


def _column_of(address: str) -> int:
    found = ADDRESS.fullmatch(address)
    number = 0
    for letter in "" if found is None else found[1]:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


def column_letters(number: int) -> str:
    """The letters of a column, from 1: A, …, Z, AA, …"""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def read(file: SourceFile, name: str | None) -> Iterator[Header | RawRecord | InvalidRecord]:
    """The header, then each record, or its issue. All values are texts."""
    with file.as_stored() as content:
        if content.read(len(MAGIC)) != MAGIC:
            issue = Issue(
                Code.FILE_UNKNOWN,
                "the workbook is compressed by gzip or zstd",
                ".xlsx, which is compressed itself",
                "decompress it (gunzip or unzstd)",
            )
            yield InvalidRecord(RowPosition(name), (issue,), ends_file=True)
            return
        try:
            workbook = Workbook.of(Archive(content, file.count_unpacked))
            for item in _records(workbook, name):
                if isinstance(item, RawRecord):
                    # One shared text can be in every row.
                    file.count_unpacked(sum(map(len, item.fields.values())))
                yield item
        except WorkbookRefused as refused:
            yield InvalidRecord(RowPosition(name), (refused.issue,), ends_file=True)


def _records(workbook: Workbook, name: str | None) -> Iterator[Header | RawRecord | InvalidRecord]:
    rows = _rows(workbook)
    first = next(rows, None)
    if first is None:
        raise WorkbookRefused(
            Issue(
                Code.FILE_EMPTY,
                f"the first visible sheet{mark_quoted(f' {workbook.sheet[:40]!r}', '')} is empty",
                "a header and at least one row",
                "move the sheet with the rows to the first place",
            )
        )
    header = _header(first)
    second = next(rows, None)
    if len(header) == 1 and second is not None and len(second[1]) > 1:
        raise WorkbookRefused(
            Issue(
                Code.HEADER,
                f"row {first[0]} of the sheet has one cell, but row {second[0]} has {len(second[1])}",
                "the names of the columns in the first row",
                "remove the title above the header",
            )
        )
    yield Header(tuple(header.values()))
    for number, (row, cells) in enumerate(chain([] if second is None else [second], rows), start=1):
        position = RowPosition(name, number, row)
        issues = [
            _of_column(cell, header.get(column)) for column, cell in cells.items() if isinstance(cell, Issue)
        ]
        if issues:
            yield InvalidRecord(position, tuple(issues))
            continue
        # A value under no header is never lost silently: it is an unused field.
        others = {
            f"column {column_letters(column)}": cells[column] for column in cells.keys() - header.keys()
        }
        yield RawRecord(position, {text: cells.get(column, "") for column, text in header.items()} | others)


def _rows(workbook: Workbook) -> Iterator[SheetRow]:
    """The rows that have a cell."""
    found = _Rows(workbook)
    for _ in workbook.archive.steps(workbook.part, found, MAX_SHEET_BYTES):
        complete, found.rows = found.rows, []
        yield from (row for row in complete if row[1])


def _header(row: SheetRow) -> dict[int, str]:
    """The names of the columns. Raises WorkbookRefused."""
    header: dict[int, str] = {}
    for column, cell in sorted(row[1].items()):
        if isinstance(cell, Issue):
            raise WorkbookRefused(cell)
        header[column] = cell
    if issue := repeated_column(list(header.values())):
        raise WorkbookRefused(issue)
    return header


def _of_column(issue: Issue, column: str | None) -> Issue:
    if column is None:
        return issue
    return Issue(issue.code, f"{field_name(column)}: {issue.what}", issue.expected, issue.fix, column=column)
