# SPDX-License-Identifier: Apache-2.0
"""Columns of the source that stay beside a row, in all formats."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Checks, Split
from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data import split_files
from finetune_trainer.data.checks import Scanner
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.formats.base import MAX_KEPT_CHARACTERS, kept_columns
from finetune_trainer.data.formats.registry import FORMATS
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.rows import Message, Row, parse_row
from tests.trainer.data.reading import chat, json_lines, pairs, parquet_bytes, read

KEEP = Recipe(kept_columns=("language", "customer"))
OWN: dict[str, Any] = {"language": "de", "customer": 7}
KEPT = {"customer": "7", "language": "de"}
SOURCES: dict[DataFormat, str | bytes] = {
    "PromptCompletion": json_lines([{"prompt": "late?", "completion": "billing", **OWN}]),
    "ChatMessages": json_lines([chat("late?", "billing", **OWN)]),
    "CSV": "prompt,completion,customer,language\nlate?,billing,7,de\n",
    "TSV": "prompt\tcompletion\tcustomer\tlanguage\nlate?\tbilling\t7\tde\n",
    "Parquet": parquet_bytes([{"prompt": "late?", "completion": "billing", **OWN}]),
    "Alpaca": json_lines([{"instruction": "late?", "input": "", "output": "billing", **OWN}]),
    "ShareGPT": json_lines(
        [
            {
                "conversations": [{"from": "human", "value": "late?"}, {"from": "gpt", "value": "billing"}],
                **OWN,
            }
        ]
    ),
    "LabelStudio": json.dumps(
        [
            {
                "id": 1,
                "data": {"text": "late?", **OWN},
                "annotations": [
                    {"result": [{"from_name": "team", "type": "choices", "value": {"choices": ["billing"]}}]}
                ],
            }
        ]
    ),
    "Doccano": json_lines([{"id": 1, "text": "late?", "label": ["billing"], **OWN}]),
    "Preference": json_lines([{"prompt": "late?", "chosen": "billing", "rejected": "no", **OWN}]),
    "KTO": json_lines([{"prompt": "late?", "completion": "billing", "label": True, **OWN}]),
}


def test_every_format_is_covered() -> None:
    assert SOURCES.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_kept_columns_are_texts_beside_the_row(tmp_path: Path, name: DataFormat) -> None:
    outcome = read(tmp_path, SOURCES[name], KEEP)

    assert (outcome.format, outcome.problems) == (name, [])
    (row,) = outcome.dicts
    assert row["columns"] == KEPT
    assert not {"language", "customer"} & set(outcome.unused)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_else_changes_and_without_the_setting_nothing_is_kept(
    tmp_path: Path, name: DataFormat
) -> None:
    (kept,), (plain,) = read(tmp_path, SOURCES[name], KEEP).dicts, read(tmp_path, SOURCES[name]).dicts

    assert "columns" not in plain
    assert {part: value for part, value in kept.items() if part != "columns"} == plain


def test_columns_of_a_flat_export_are_not_answers(tmp_path: Path) -> None:
    table = "text,team,customer,language,annotation_id,lead_time\nlate?,billing,7,de,1,2.5\n"

    assert read(tmp_path, table, KEEP).dicts == [
        {"prompt": "late?", "completion": "billing", "columns": KEPT}
    ]


def test_a_table_without_a_kept_column_is_refused(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "prompt,completion,customer\nlate?,billing,7\n", KEEP).problems

    assert 'the header has no column "language"' in problem
    assert "keepColumns" in problem


def test_a_column_can_be_kept_that_also_groups_or_is_the_prompt(tmp_path: Path) -> None:
    recipe = Recipe(division=Split(group_by="customer"), kept_columns=("customer", "prompt"))
    outcome = read(tmp_path, json_lines([{**pairs(1)[0], "customer": "x"}]), recipe)

    assert outcome.raw_rows[0].group == "x"
    assert outcome.rows[0].columns == (("customer", "x"), ("prompt", "question 0"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\r\nb", "a\nb"),
        (7, "7"),
        (0.5, "0.5"),
        (True, "true"),
        (["a", {"b": None}], '["a", {"b": null}]'),
        ("bell \x07, half \ud83d", "bell \ufffd, half \ufffd"),
        ("x" * 300, "x" * (MAX_KEPT_CHARACTERS - 1) + "…"),
    ],
)
def test_any_value_becomes_a_short_text(value: Any, text: str) -> None:
    assert kept_columns({"a": value}, ["a"]) == (("a", text),)


@pytest.mark.parametrize("record", [{}, {"a": None}, {"a": ""}])
def test_an_absent_value_is_left_out(record: dict[str, Any]) -> None:
    assert kept_columns(record, ["a"]) == ()


ROWS = [
    Row.pair("late?", "billing"),
    Row((Message("system", "Be brief."), Message("user", "late?"), Message("assistant", "billing"))),
    Row(Row.pair("late?", "billing").messages, "Preference", rejected="no"),
    Row(Row.pair("late?", "billing").messages, "KTO", label=False),
]


@pytest.mark.parametrize("row", ROWS)
def test_a_prepared_file_has_the_columns_and_gives_the_same_row(row: Row) -> None:
    kept = replace(row, columns=(("a", "1"), ("b", "ü")))

    line = split_files.line_of(kept).decode()

    assert parse_row(line) == kept
    assert line == f"{kept.to_line()}\n"
    assert "columns" not in row.to_line()


def test_personal_data_in_kept_columns_is_redacted_as_elsewhere() -> None:
    scanner = Scanner(Checks(email_addresses="Redact"))
    row = Row(Row.pair("late?", "billing").messages, columns=(("from", "jo@example.com"),))

    redacted, issues = scanner.scan(row)

    assert redacted.columns == (("from", "[EMAIL]"),)
    assert [issue.column for issue in issues] == ["from"]


def test_a_column_that_no_row_has_is_reported(tmp_path: Path) -> None:
    rows = [{**pair, "language": "de"} for pair in pairs(3)]
    (tmp_path / "rows.jsonl").write_text(json_lines(rows))
    folder = tmp_path / "out"
    folder.mkdir()

    found = prepare([SourceFile(tmp_path / "rows.jsonl")], KEEP, folder)

    issues = [problem.issue.what for problem in found.problems if "keepColumns" in problem.issue.what]
    assert issues == ["keepColumns names customer, but no row has a value in it"]
