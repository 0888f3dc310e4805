# SPDX-License-Identifier: Apache-2.0
"""Workbooks: values as a person sees them, traps of spreadsheets, and files made to do harm."""

import datetime
import io
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from finetune_trainer.data.containers import excel
from finetune_trainer.data.containers.base import Header, RawRecord
from finetune_trainer.data.files import SourceFile, TooLarge, is_data, unpacking_budget
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import Code, InvalidRecord
from tests.trainer.data.reading import Outcome, gzipped, read, read_files

NAMED = Recipe(names=FieldNames(prompt="message", completion="team"), kept_columns=("value",))


def saved(build: Callable[[Any], None]) -> bytes:
    """A workbook whose first sheet `build` fills, as openpyxl writes it."""
    book = openpyxl.Workbook()
    build(book.active)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def table(*rows: Sequence[Any]) -> bytes:
    def build(sheet: Any) -> None:
        for row in rows:
            sheet.append(row)

    return saved(build)


HEADER = ("message", "team", "value")
PAIRS = (("a", "b", None), ("c", "d", None))


def texts(outcome: Outcome) -> list[tuple[str, str]]:
    return [(row.messages[0].content, row.output) for row in outcome.rows]


def kept(outcome: Outcome) -> list[str | None]:
    return [dict(row.columns).get("value") for row in outcome.rows]


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        ("007", "General", "007"),
        (7, "General", "7"),
        (7, "00000", "00007"),
        (7.0, "0.00", "7"),
        (0.1 + 0.2, "General", "0.3"),
        (1234567890123456, "General", "1234567890123456"),
        (True, "General", "TRUE"),
        (datetime.date(2026, 3, 1), "yyyy-mm-dd", "2026-03-01"),
        (datetime.datetime.fromisoformat("2026-03-01T13:30"), "dd.mm.yyyy hh:mm", "2026-03-01T13:30:00"),
        (datetime.time(13, 30), "hh:mm", "13:30:00"),
        (datetime.timedelta(hours=30, minutes=5), "[h]:mm", "30:05:00"),
        (46000, "[$-407]d. mmmm yyyy", "2025-12-09"),
        ("first\nsecond", "General", "first\nsecond"),
        (" spaces ", "General", " spaces "),
        ("=A1", "General", None),
    ],
)
def test_values_are_read_as_the_cell_shows_them(
    tmp_path: Path, value: object, number_format: str, shown: str | None
) -> None:
    def build(sheet: Any) -> None:
        sheet.append(HEADER)
        sheet.append(("a", "b", value))
        sheet["C2"].number_format = number_format

    outcome = read(tmp_path, saved(build), NAMED)

    if shown is None:
        problem = (
            "value: C2 is a formula without a stored value; expected a value; open the file in Excel and"
        )
        assert outcome.problems == [f"row 1 (line 2): {problem} save it"]
    else:
        assert (outcome.format, kept(outcome)) == ("CSV", [shown])


def test_rows_count_as_those_of_csv_and_empty_ones_do_not_count(tmp_path: Path) -> None:
    content = table((), HEADER, ("a", "b"), (), ("", " "), ("c", None), ("e", "f", "g"), *[(None, "")] * 300)

    outcome = read(tmp_path, content, NAMED)

    assert texts(outcome) == [("a", "b"), ("e", "f")]
    assert outcome.problems == [
        "row 2 (line 6): team is empty; expected text; fill team in, or remove the row"
    ]


def test_a_merged_area_has_its_value_in_the_first_cell_only(tmp_path: Path) -> None:
    def build(sheet: Any) -> None:
        for row in (HEADER, ("a", "b"), ("c", "d")):
            sheet.append(row)
        sheet.merge_cells("B2:B3")

    outcome = read(tmp_path, saved(build), NAMED)

    assert texts(outcome) == [("a", "b")]
    assert outcome.codes == [Code.FIELD_EMPTY]


def test_a_title_above_the_header_is_named(tmp_path: Path) -> None:
    outcome = read(tmp_path, table(("Tickets of 2026",), HEADER, *PAIRS), NAMED)

    assert outcome.problems[0].startswith("file: row 1 of the sheet has one cell, but row 2 has 3")
    assert "remove the title above the header" in outcome.problems[0]


def test_a_value_under_no_header_is_an_unused_field(tmp_path: Path) -> None:
    outcome = read(tmp_path, table(HEADER, ("a", "b", None, None, "note"), ("c", "d")), NAMED)

    assert texts(outcome) == [("a", "b"), ("c", "d")]
    assert outcome.unused == ("column E",)


def test_the_first_visible_sheet_is_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.sheet_state = "hidden"
    book.active.append(("hidden",))
    for name in ("shown", "another"):
        sheet = book.create_sheet(name)
        sheet.append(HEADER)
        sheet.append((name, "b"))
    content = io.BytesIO()
    book.save(content)

    assert texts(read(tmp_path, content.getvalue(), NAMED)) == [("shown", "b")]


def test_rich_texts_and_escapes_are_joined_and_pronunciations_left_out(tmp_path: Path) -> None:
    strings = (
        "<si><r><t>mes</t></r><r><t>sage</t></r><rPh><t>no</t></rPh></si><si><t>team</t></si>"
        "<si><t>a_x000D_\nb_x005F_x000D_ &amp; &lt;</t></si>"
        "<si><t>東京</t><rPh sb='0'><t>トウキョウ</t></rPh></si>"
    )
    rows = cells("s", 0, 1), cells("s", 2, 3)

    outcome = read(tmp_path, archive(rows, strings=strings), NAMED_ONLY)

    assert texts(outcome) == [("a\nb_x000D_ & <", "東京")]


def test_a_workbook_is_recognized_by_its_content_and_only_tables_of_commas_are_it(tmp_path: Path) -> None:
    content = table(HEADER, *PAIRS)

    assert texts(read_files(tmp_path, {"rows.csv": content}, NAMED)) == [("a", "b"), ("c", "d")]
    forced = read(tmp_path, content, Recipe(format="TSV"))
    assert forced.problems == [
        "file: the file is an Excel workbook; expected TSV, as format says; leave format out"
    ]
    packed = read(tmp_path, gzipped(content), NAMED)
    assert packed.problems[0].startswith("file: the workbook is compressed by gzip or zstd")
    assert [is_data(name) for name in ("a.xlsx", "~$a.xlsx", "a.XLSX", "a.xls")] == [True, False, True, False]


def test_a_workbook_and_its_csv_are_one_source(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.csv": "message,team,value\ne,f,\n", "b.xlsx": table(HEADER, *PAIRS)}

    assert texts(read_files(tmp_path, files, NAMED)) == [("e", "f"), ("a", "b"), ("c", "d")]


NAMED_ONLY = Recipe(names=FieldNames(prompt="message", completion="team"))
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def relations(*of: tuple[str, str, str]) -> str:
    each = (f'<Relationship Id="{key}" Type="{OFFICE}/{kind}" {target}/>' for key, kind, target in of)
    return f"<Relationships>{''.join(each)}</Relationships>"


def cells(kind: str, *values: object) -> str:
    return "".join(f'<c t="{kind}"><v>{value}</v></c>' for value in values)


def inline(*values: str) -> str:
    return "".join(f'<c t="inlineStr"><is><t>{value}</t></is></c>' for value in values)


def sheet_of(rows: Iterable[str], before: str = "") -> str:
    lines = "".join(row if row.startswith("<row") else f"<row>{row}</row>" for row in rows)
    return f'<worksheet xmlns="{MAIN}">{before}<sheetData>{lines}</sheetData></worksheet>'


HEAD = inline("message", "team")


def archive(
    rows: Iterable[str] = (),
    *,
    strings: str | None = None,
    sheet: str | None = None,
    parts: Mapping[str, str | bytes] | None = None,
    method: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """A workbook with these rows. `parts` replace or add parts."""
    book: dict[str, str | bytes] = {
        "_rels/.rels": relations(("r1", "officeDocument", 'Target="xl/workbook.xml"')),
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets><sheet name="A" r:id="r1"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": relations(
            ("r1", "worksheet", 'Target="worksheets/sheet1.xml"'),
            ("r2", "sharedStrings", 'Target="/xl/sharedStrings.xml"'),
        ),
        "xl/worksheets/sheet1.xml": sheet_of(rows) if sheet is None else sheet,
    }
    if strings is not None:
        book["xl/sharedStrings.xml"] = f"<sst>{strings}</sst>"
    book |= parts or {}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as packed:
        for name, part in book.items():
            packed.writestr(name, part)
    return content.getvalue()


SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
RELATIONS = "xl/_rels/workbook.xml.rels"
LAUGHS = (
    '<!DOCTYPE sst [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)
OUTSIDE = '<!DOCTYPE sst [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
ROW = inline("a", "b")


def end_of_directory(parts: int, size: int) -> bytes:
    return b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, parts, parts, size, 0, 0)


def with_parts(parts: int, size: int) -> bytes:
    return b"PK\x03\x04" + end_of_directory(parts, size)


def bomb(name: str, size: int) -> bytes:
    """A workbook with a part of this number of spaces, which is small on disk."""
    content = io.BytesIO(archive([HEAD]))
    piece = b" " * (1 << 20)
    with zipfile.ZipFile(content) as packed:
        parts = {info.filename: packed.read(info) for info in packed.infolist() if info.filename != name}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for each, part in parts.items():
            packed.writestr(each, part)
        with packed.open(name, "w", force_zip64=True) as large:
            for _ in range(size >> 20):
                large.write(piece)
    return content.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "entities": (
        lambda: archive([HEAD, ROW], parts={STRINGS: f"{LAUGHS}<sst/>"}),
        "XML with a document type",
    ),
    "entities in the sheet": (
        lambda: archive(sheet=LAUGHS + sheet_of([HEAD, inline("&c;", "b")])),
        "XML with a document type",
    ),
    "entities in UTF-16": (
        lambda: archive(parts={SHEET: (LAUGHS + sheet_of([HEAD])).encode("utf-16")}),
        "XML with a document type",
    ),
    "an entity of a file": (
        lambda: archive(parts={STRINGS: f"{OUTSIDE}<sst><si><t>&a;</t></si></sst>"}),
        "XML with a document type",
    ),
    "a gigabyte of shared texts": (
        lambda: archive([HEAD, ROW], strings="<si><t>" + "a" * (65 << 20) + "</t></si>"),
        "has 65 MiB of XML in a part of at most 64 MiB",
    ),
    "a sheet of a gigabyte": (
        lambda: bomb(SHEET, 1 << 30),
        "has 1024 MiB of XML in a part of at most 512 MiB",
    ),
    "styles of a gigabyte": (
        lambda: archive(
            [HEAD],
            parts={
                RELATIONS: relations(
                    ("r1", "worksheet", 'Target="worksheets/sheet1.xml"'), ("r2", "styles", 'Target="s.xml"')
                ),
                "xl/s.xml": "<a>" + " " * (9 << 20),
            },
        ),
        "has 9 MiB of XML in a part of at most 8 MiB",
    ),
    "a row beyond the last": (
        lambda: archive([HEAD, f'<row r="999999999999">{ROW}</row>']),
        "row outside of 1 to 1048576",
    ),
    "a column beyond the last": (
        lambda: archive([HEAD, '<row><c r="ZZZ2" t="str"><v>a</v></c></row>']),
        "column outside of 1 to 16384",
    ),
    "an address that is none": (
        lambda: archive([HEAD, '<row><c r="-1"/></row>']),
        "column outside of 1 to 16384",
    ),
    "too many columns": (lambda: archive([HEAD, "<c/>" * 16_385]), "column outside of 1 to 16384"),
    "a missing text": (lambda: archive([HEAD, cells("s", 5, 5)], strings=""), "A2 refers to a missing text"),
    "a text of a number with a million digits": (
        lambda: archive([HEAD, cells("s", "1" * 1_000_000)], strings=""),
        "A2 refers to a missing text",
    ),
    "deep nesting": (lambda: archive(sheet="<a>" * 100_000), "XML nested too deeply"),
    "a tag of two megabytes": (
        lambda: archive(sheet=f'<worksheet a="{"b" * (2 << 20)}"/>'),
        "a tag of more than 1 MiB",
    ),
    "a row of 17 MiB": (
        lambda: archive([HEAD, cells("s", *[0] * 17)], strings="<si><t>" + "a" * (1 << 20) + "</t></si>"),
        "row 2 of the sheet is longer than 16 MiB",
    ),
    "XML that ends early": (lambda: archive(sheet=f"<worksheet><sheetData><row>{HEAD}"), "not valid XML"),
    "a link to another file": (
        lambda: archive(
            parts={
                RELATIONS: relations(
                    ("r1", "worksheet", 'Target="file:///etc/hostname" TargetMode="External"')
                )
            }
        ),
        "no visible sheet with cells",
    ),
    "a part outside of the archive": (
        lambda: archive(
            parts={RELATIONS: relations(("r1", "worksheet", 'Target="../../../../etc/hostname"'))}
        ),
        "a part of it is missing",
    ),
    "a Word document": (
        lambda: archive(
            parts={"_rels/.rels": relations(("r1", "officeDocument", 'Target="word/document.xml"'))}
        ),
        "a ZIP archive without an Excel workbook",
    ),
    "a directory of a million parts": (lambda: with_parts(0xFFFF, 0x7FFFFFFF), "has more than 10000 parts"),
    "a large directory behind a locator": (
        lambda: b"PK\x03\x04" + b"PK\x06\x07" + bytes(16) + end_of_directory(1, 0),
        "has more than 10000 parts",
    ),
    "no directory": (lambda: archive([HEAD])[:-30], "it has no end"),
    "another compression": (lambda: archive([HEAD], method=zipfile.ZIP_LZMA), "an unusual compression"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_workbook_made_to_do_harm_is_refused_in_little_memory_and_time(tmp_path: Path, name: str) -> None:
    make, problem = HOSTILE[name]
    path = tmp_path / "rows.xlsx"
    path.write_bytes(make())
    begin = time.process_time()
    tracemalloc.start()

    items = list(excel.read(SourceFile(path), None))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    issues = [str(issue) for item in items if isinstance(item, InvalidRecord) for issue in item.issues]
    assert len(issues) == 1
    assert problem in issues[0]
    assert isinstance(items[-1], InvalidRecord)
    assert items[-1].ends_file
    assert peak < 40 << 20
    assert time.process_time() - begin < 10


def test_the_claimed_size_of_a_sheet_costs_nothing(tmp_path: Path) -> None:
    rows = [
        HEAD,
        *(f'<row r="{number}">{ROW}</row>' for number in range(2, 100)),
        f'<row r="1048576">{ROW}</row>',
    ]
    content = archive(sheet=sheet_of(rows, before='<dimension ref="A1:XFD1048576"/>'))

    assert len(read(tmp_path, content, NAMED_ONLY).rows) == 99


def test_one_text_in_every_row_counts_against_the_limit_of_unpacked_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_bytes(
        archive([HEAD, *[cells("s", 0, 0)] * 1000], strings="<si><t>" + "a" * (1 << 20) + "</t></si>")
    )
    file = SourceFile(path, budget=unpacking_budget(64 << 20))

    with pytest.raises(TooLarge, match="64 MiB"):
        list(excel.read(file, None))


@pytest.mark.parametrize(
    ("limit", "what"), [("MAX_ROWS", "outside of 1 to 3"), ("MAX_CELLS", "more than 3 cells")]
)
def test_rows_and_cells_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, what: str
) -> None:
    monkeypatch.setattr(excel, limit, 3)

    outcome = read(tmp_path, archive([HEAD, *[f'<row r="1">{ROW}</row>'] * 3]), NAMED_ONLY)

    assert what in outcome.problems[-1]


VALID = archive(
    [HEAD, cells("s", 0, 0), ROW, '<row r="9"><c r="B9" s="1"><f>1</f><v>2</v></c></row>'],
    strings="<si><r><t>a</t></r></si>",
    method=zipfile.ZIP_STORED,
)


@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 300)
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_a_finding_and_never_a_crash(
    tmp_path: Path, changes: list[tuple[int, int]], removed: int
) -> None:
    content = bytearray(VALID)
    for index, byte in changes:
        content[index] = byte
    path = tmp_path / "rows"
    path.write_bytes(content[: len(content) - removed])

    for item in excel.read(SourceFile(path), None):
        assert isinstance(item, Header | RawRecord | InvalidRecord)


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8).filter(
                lambda text: not ILLEGAL_CHARACTERS_RE.search(text) and not text.startswith("=")
            ),
            min_size=2,
            max_size=2,
        ),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_texts_of_a_table_are_those_that_were_saved(tmp_path: Path, rows: list[list[str]]) -> None:
    path = tmp_path / "rows"
    path.write_bytes(table(("message", "team"), *rows))

    _, *records = excel.read(SourceFile(path), None)

    found = [list(item.fields.values()) for item in records if isinstance(item, RawRecord)]
    shown = [["" if text.isspace() else text for text in row] for row in rows]
    assert found == [row for row in shown if any(row)]
