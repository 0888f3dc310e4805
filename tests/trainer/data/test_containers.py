# SPDX-License-Identifier: Apache-2.0
"""Containers: which records are read, and with which positions."""

import datetime
import decimal
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest

from finetune_trainer.data.containers import delimited, json_records, parquet
from finetune_trainer.data.containers.base import Container, Header, RawRecord
from finetune_trainer.data.files import CHUNK_BYTES, SourceFile
from finetune_trainer.data.row_problems import Code, InvalidRecord, RowPosition
from tests.trainer.data.reading import json_lines, pairs, parquet_bytes


def items(
    folder: Path, container: Container, content: str | bytes
) -> list[Header | RawRecord | InvalidRecord]:
    path = folder / "rows"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    decoder = json_records.LineDecoder()
    read = container(SourceFile(path), None)
    return [decoder.decode(item, None) if isinstance(item, tuple) else item for item in read]


def test_a_line_is_a_record_and_empty_lines_are_not(tmp_path: Path) -> None:
    assert items(
        tmp_path, json_records.read_json_lines, '\ufeff{"a": 1}\r\n\n \t\n{"a": [2, null, "é"]}'
    ) == [
        RawRecord(RowPosition(None, 1, 1), {"a": 1}),
        RawRecord(RowPosition(None, 4, 4), {"a": [2, None, "é"]}),
    ]


def test_a_json_list_counts_its_objects(tmp_path: Path) -> None:
    assert items(tmp_path, json_records.read_json_list, '\ufeff [\n {"a": 1},\n\n{"a":\n"é"}\n]\n') == [
        RawRecord(RowPosition(None, 1), {"a": 1}),
        RawRecord(RowPosition(None, 2), {"a": "é"}),
    ]
    assert items(tmp_path, json_records.read_json_list, "[ ]\n") == []


@pytest.mark.parametrize("size", range(CHUNK_BYTES - 20, CHUNK_BYTES + 20))
def test_a_json_list_is_read_whole_wherever_a_chunk_ends(tmp_path: Path, size: int) -> None:
    rows = [{"a": "x" * (size - 40)}, {"b": [1.25e-3, True, {'é\\"\n': "\U0001f600"}]}, {"c": -12}]
    text = json.dumps(rows[:1])[:-1] + ", " + json.dumps(rows[1:], ensure_ascii=size % 2 == 0)[1:]

    read = items(tmp_path, json_records.read_json_list, text)

    assert [record.fields for record in read if isinstance(record, RawRecord)] == rows


def test_a_json_list_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[" + ",\n".join([json.dumps({"a": "x" * 1000})] * 20_000) + "]")

    tracemalloc.start()
    count = sum(1 for _ in json_records.read_json_list(SourceFile(path), None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 20_000
    assert peak < path.stat().st_size / 4


@pytest.mark.parametrize(("container", "separator"), [(delimited.read_csv, ","), (delimited.read_tsv, "\t")])
def test_a_table_yields_its_header_and_its_records_with_their_lines(
    tmp_path: Path, container: Container, separator: str
) -> None:
    content = '\ufeffid;text\r\n1;"two\r\nlines; and a ""quote"""\r\n\r\n2;plain\r\n'.replace(";", separator)

    assert items(tmp_path, container, content) == [
        Header(("id", "text")),
        RawRecord(RowPosition(None, 1, 2), {"id": "1", "text": f'two\r\nlines{separator} and a "quote"'}),
        RawRecord(RowPosition(None, 2, 5), {"id": "2", "text": "plain"}),
    ]


def records(read: list[Header | RawRecord | InvalidRecord]) -> list[tuple[str, ...]]:
    return [tuple(item.fields.values()) for item in read if isinstance(item, RawRecord)]


def test_semicolons_separate_csv_if_the_header_has_more_of_them(tmp_path: Path) -> None:
    content = '\ufeffprompt;"label, or; two"\r\n"a;b";"c, d"\r\n'

    assert items(tmp_path, delimited.read_csv, content) == [
        Header(("prompt", "label, or; two")),
        RawRecord(RowPosition(None, 1, 2), {"prompt": "a;b", "label, or; two": "c, d"}),
    ]
    assert records(items(tmp_path, delimited.read_csv, 'prompt,"a; b; c"\n1;2,3\n')) == [("1;2", "3")]


def test_a_wrong_row_of_a_table_with_semicolons_is_reported_with_them(tmp_path: Path) -> None:
    _, invalid = items(tmp_path, delimited.read_csv, "prompt;completion\na;b;c\n")

    assert isinstance(invalid, InvalidRecord)
    assert str(invalid.issues[0]).endswith('put texts with ";" in double quotes')


@pytest.mark.parametrize(("container", "separator"), [(delimited.read_csv, ","), (delimited.read_tsv, "\t")])
def test_a_line_of_separators_only_is_not_a_record(
    tmp_path: Path, container: Container, separator: str
) -> None:
    content = ";\nprompt;completion\na;b\n;\n;;;\nc;d\n;\n".replace(";", separator)

    assert records(items(tmp_path, container, content)) == [("a", "b"), ("c", "d")]


SHEET = ["One?\tA1", "Two?\tA2", "Three?\tA3"]
"""Rows as Google Sheets writes them: without quoting."""


@pytest.mark.parametrize(
    "row",
    ['"Two, or more?\tA2', '"Two" or more?\tA2', 'Two\t"A" and 2', '12" or 14"\tA2', '"Two\tA 12"', '"\t"'],
)
def test_a_quote_of_tsv_that_does_not_end_the_same_cell_is_text(tmp_path: Path, row: str) -> None:
    content = "\n".join(["prompt\tcompletion", SHEET[0], row, SHEET[2], ""])

    read = items(tmp_path, delimited.read_tsv, content)

    assert records(read) == [tuple(line.split("\t")) for line in (SHEET[0], row, SHEET[2])]
    assert [item.position.line for item in read[1:] if not isinstance(item, Header)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('"Two"', "Two"),
        ('"Two ""or"" more"', 'Two "or" more'),
        ('"two\nlines"', "two\nlines"),
        ('"two\n\nparagraphs, ""quoted"""', 'two\n\nparagraphs, "quoted"'),
        ('"a\ttab"', "a\ttab"),
        ('"def f():\n\tx = 1\n\treturn x\n"', "def f():\n\tx = 1\n\treturn x\n"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("is_last", [True, False], ids=["last column", "first column"])
def test_cells_of_tsv_in_quotes_may_have_tabs_and_lines(
    tmp_path: Path, cell: str, expected: str, is_last: bool
) -> None:
    row = f"x\t{cell}" if is_last else f"{cell}\tx"

    read = items(tmp_path, delimited.read_tsv, "\n".join(["prompt\tcompletion", row, SHEET[2], ""]))

    assert records(read) == [("x", expected) if is_last else (expected, "x"), ("Three?", "A3")]


def test_lines_of_tsv_that_can_be_one_cell_or_several_rows_are_reported(tmp_path: Path) -> None:
    rows = [SHEET[0], '"Two, or more?\tA2', SHEET[2], 'A board of 12"\tA4', "Five?\tA5"]

    read = items(tmp_path, delimited.read_tsv, "\n".join(["prompt\tcompletion", *rows, ""]))

    assert [values[1] for values in records(read)] == ["A1", "A3", "A4", "A5"]
    (invalid,) = (item for item in read if isinstance(item, InvalidRecord))
    assert invalid.position == RowPosition(None, 2, 3)
    assert str(invalid.issues[0]) == (
        "a quote opens here and closes in line 5, but these lines are complete rows too; expected quotes"
        " that open and close in the same cell; remove the quotes, or export the table as CSV"
    )


def test_parquet_yields_its_columns_and_its_rows_as_in_json(tmp_path: Path) -> None:
    row = {
        "text": "é",
        "number": 2.5,
        "yes": True,
        "nothing": None,
        "messages": [{"role": "user", "content": "a"}],
    }

    assert items(tmp_path, parquet.read, parquet_bytes([row, row])) == [
        Header(("text", "number", "yes", "nothing", "messages")),
        RawRecord(RowPosition(None, 1), row),
        RawRecord(RowPosition(None, 2), row),
    ]


def test_dates_and_decimals_of_parquet_are_texts(tmp_path: Path) -> None:
    moment = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    content = parquet_bytes([{"day": moment.date(), "at": moment, "price": decimal.Decimal("1.50")}])

    _, record = items(tmp_path, parquet.read, content)

    assert isinstance(record, RawRecord)
    assert record.fields == {"day": "2030-01-02", "at": "2030-01-02 03:04:05.000000Z", "price": "1.50"}


def test_every_row_group_of_parquet_is_read_in_order(tmp_path: Path) -> None:
    _, *records = items(tmp_path, parquet.read, parquet_bytes(pairs(2500), row_group_size=700))

    assert [record.position.record for record in records if isinstance(record, RawRecord)] == [
        *range(1, 2501)
    ]


def test_a_text_of_parquet_that_is_not_utf8_is_a_problem_of_its_row(tmp_path: Path) -> None:
    texts = pyarrow.array([b"a", b"caf\xe9", b"c"], pyarrow.binary()).view(pyarrow.string())
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)

    _, first, second, third = parquet.read(SourceFile(path), None)

    assert isinstance(first, RawRecord)
    assert isinstance(second, InvalidRecord)
    assert isinstance(third, RawRecord)
    assert second.issues[0].code is Code.ENCODING
    assert str(second.issues[0]).startswith("text has the byte 0xE9, which is not UTF-8; expected UTF-8")


def test_two_columns_with_the_same_name_are_rejected_in_parquet_too(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path)

    (invalid,) = parquet.read(SourceFile(path), None)

    assert isinstance(invalid, InvalidRecord)
    assert str(invalid.issues[0]).startswith('the header has "text" twice; expected each name once')


def test_json_lines_with_any_kind_of_white_space_are_read(tmp_path: Path) -> None:
    read = items(tmp_path, json_records.read_json_lines, json_lines(pairs(3)).replace("\n", "  \r\n"))

    assert [record.fields for record in read if isinstance(record, RawRecord)] == pairs(3)
