# SPDX-License-Identifier: Apache-2.0
"""Detection of a source's format, and forced formats."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.vocabulary import DataFormat, SplitName
from finetune_trainer.data.reading import split_of
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.data.row_problems import Code
from tests.trainer.data.reading import (
    chat,
    gzipped,
    json_lines,
    pairs,
    parquet_bytes,
    read,
    read_files,
    turns,
    zstandarded,
)

PAIR = pairs(1)[0]
CHAT = chat("a", "b")
PREFERENCE = {"prompt": "a", "chosen": "b", "rejected": "c"}
IMPLICIT = {"chosen": turns("a", "b"), "rejected": turns("a", "c")}
ALPACA = {"instruction": "a", "input": "", "output": "b"}
SHAREGPT = {"id": "x", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
TASK = {
    "data": {"text": "a"},
    "annotations": [{"result": [{"from_name": "x", "type": "choices", "value": {"choices": ["b"]}}]}],
}
FLAT = {"text": "a", "x": "b", "annotator": 1, "annotation_id": 1, "lead_time": 1.5}
DOCCANO = {"id": 1, "text": "a", "label": ["b"]}

FOUND: list[tuple[Any, DataFormat]] = [
    (PAIR, "PromptCompletion"),
    ({**PAIR, "label": "billing"}, "PromptCompletion"),
    ({**PAIR, "label": 1}, "KTO"),
    ({**PAIR, "label": True}, "KTO"),
    (CHAT, "ChatMessages"),
    ({**CHAT, "prompt": "a"}, "ChatMessages"),
    (PREFERENCE, "Preference"),
    (IMPLICIT, "Preference"),
    (ALPACA, "Alpaca"),
    (SHAREGPT, "ShareGPT"),
    (TASK, "LabelStudio"),
    (FLAT, "LabelStudio"),
    (DOCCANO, "Doccano"),
]


@pytest.mark.parametrize(("record", "form"), FOUND, ids=range(len(FOUND)))
@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
def test_the_fields_determine_the_format_of_json(
    tmp_path: Path, as_list: bool, record: Any, form: DataFormat
) -> None:
    outcome = read(tmp_path, json.dumps([record], indent=2) if as_list else json_lines([record]))

    assert (outcome.format, outcome.problems, len(outcome.rows)) == (form, [], 1)


TABLES: list[tuple[str, DataFormat]] = [
    ("prompt,completion\na,b\n", "CSV"),
    ("prompt\tcompletion\na\tb\n", "TSV"),
    ("prompt\tcompletion, or answer\tcompletion\na\tx\tb\n", "TSV"),
    ("prompt,completion,label\na,b,1\n", "KTO"),
    ("prompt,completion,label\na,b,TRUE\n", "KTO"),
    ("prompt,completion,label\na,b,billing\n", "CSV"),
    ("prompt,chosen,rejected\na,b,c\n", "Preference"),
    ("instruction,input,output\na,,b\n", "Alpaca"),
    ("id,text,label\n1,a,b\n", "Doccano"),
    ("id,text,label,Comments\n1,a,b,\n", "Doccano"),
    ("annotation_id,annotator,lead_time,text,x\n1,me,1.5,a,b\n", "LabelStudio"),
]


@pytest.mark.parametrize(("content", "form"), TABLES, ids=range(len(TABLES)))
def test_the_columns_determine_the_format_of_a_table(tmp_path: Path, content: str, form: DataFormat) -> None:
    outcome = read(tmp_path, content)

    assert (outcome.format, outcome.problems, len(outcome.rows)) == (form, [], 1)


@pytest.mark.parametrize(
    ("record", "form"),
    [(PAIR, "Parquet"), (CHAT, "ChatMessages"), (PREFERENCE, "Preference"), ({**PAIR, "label": 1}, "KTO")],
)
@pytest.mark.parametrize("forced", [None, "Parquet"])
def test_parquet_has_rows_of_any_form(
    tmp_path: Path, forced: DataFormat | None, record: Any, form: DataFormat
) -> None:
    outcome = read(tmp_path, parquet_bytes([record]), Recipe(format=forced))

    assert (outcome.format, outcome.problems, len(outcome.rows)) == (form, [], 1)


NAMED: list[tuple[FieldNames, Any, DataFormat]] = [
    (FieldNames(prompt="text", completion="label"), {"text": "a", "label": "b"}, "PromptCompletion"),
    (FieldNames(prompt="output", completion="instruction"), ALPACA, "PromptCompletion"),
    (FieldNames(messages="turns"), {"turns": turns("a", "b"), "prompt": "unused"}, "ChatMessages"),
    (FieldNames(chosen="good", rejected="bad"), {"prompt": "a", "good": "b", "bad": "c"}, "Preference"),
    (FieldNames(label="good"), {**PAIR, "good": 0}, "KTO"),
    (FieldNames(prompt="text", completion="label"), DOCCANO, "Doccano"),
    (FieldNames(prompt="text", completion="x"), FLAT, "LabelStudio"),
    (
        FieldNames(template="{subject}\n{body}"),
        {"subject": "a", "body": "b", "completion": "c"},
        "PromptCompletion",
    ),
    (FieldNames(template="{input}", completion="output"), {**ALPACA, "input": "c"}, "PromptCompletion"),
]


@pytest.mark.parametrize(("names", "record", "form"), NAMED, ids=range(len(NAMED)))
def test_columns_in_the_recipe_take_precedence(
    tmp_path: Path, names: FieldNames, record: Any, form: DataFormat
) -> None:
    outcome = read(tmp_path, json_lines([record]), Recipe(names=names))

    assert (outcome.format, outcome.problems, len(outcome.rows)) == (form, [], 1)


def test_columns_in_the_recipe_make_doccanos_columns_a_plain_table(tmp_path: Path) -> None:
    recipe = Recipe(names=FieldNames(prompt="text", completion="label"))

    assert read(tmp_path, "id,text,label\n1,a,b\n", recipe).format == "CSV"


def test_most_of_the_first_rows_determine_the_format(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([CHAT, *pairs(3)]))

    assert outcome.format == "PromptCompletion"
    assert outcome.codes == [Code.FORMATS_MIXED]


def test_rows_that_cannot_be_read_do_not_hide_the_format(tmp_path: Path) -> None:
    assert read(tmp_path, '{"broken\n' * 20 + json_lines([CHAT])).format == "ChatMessages"


def test_a_forced_format_is_not_detected(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([CHAT, *pairs(3)]), Recipe(format="ChatMessages"))

    assert outcome.format == "ChatMessages"
    assert len(outcome.rows) == 1


@pytest.mark.parametrize(
    "content",
    [
        json_lines([ALPACA]),
        json.dumps([ALPACA]),
        "instruction,output\na,b\n",
        "instruction\toutput\na\tb\n",
        parquet_bytes([ALPACA]),
    ],
    ids=["lines", "list", "CSV", "TSV", "Parquet"],
)
def test_a_forced_record_format_may_be_in_any_container(tmp_path: Path, content: str | bytes) -> None:
    outcome = read(tmp_path, content, Recipe(format="Alpaca"))

    assert (outcome.format, outcome.dicts) == ("Alpaca", [{"prompt": "a", "completion": "b"}])


@pytest.mark.parametrize("packed", [gzipped, zstandarded])
@pytest.mark.parametrize("content", [json_lines(pairs(5)), json.dumps(pairs(5))])
def test_compressed_files_are_detected_by_their_content(tmp_path: Path, packed: Any, content: str) -> None:
    outcome = read(tmp_path, packed(content))

    assert (outcome.format, outcome.dicts) == ("PromptCompletion", pairs(5))


def test_a_table_with_a_header_only_has_no_rows_and_no_problem(tmp_path: Path) -> None:
    outcome = read(tmp_path, "prompt,completion\n")

    assert (outcome.format, outcome.items) == ("CSV", [])


def test_a_file_that_could_not_be_read_counts_for_the_digest(tmp_path: Path) -> None:
    first = read(tmp_path, "hello\n")
    second = read(tmp_path, "hullo\n")

    assert first.digests != second.digests
    assert first.digests == read(tmp_path, "hello\n").digests


def test_parquet_counts_for_the_digest(tmp_path: Path) -> None:
    assert read(tmp_path, parquet_bytes(pairs(1))).digests != read(tmp_path, parquet_bytes(pairs(2))).digests


def test_unused_fields_are_named_once_in_the_order_of_their_occurrence(tmp_path: Path) -> None:
    rows = [{**PAIR, "source": "mail"}, {**PAIR, "lang": "en", "source": "web", "empty": None}, PAIR]

    assert read(tmp_path, json_lines(rows)).unused == ("source", "lang")


def test_columns_of_groups_and_splits_are_used(tmp_path: Path) -> None:
    recipe = Recipe(division=Split(group_by="customer", column="part"))

    outcome = read(tmp_path, json_lines([{**PAIR, "customer": 7, "part": " Dev "}]), recipe)

    assert outcome.unused == ()
    assert (outcome.raw_rows[0].group, outcome.raw_rows[0].split) == (7, "validation")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("validation_1.csv", "validation"),
        ("dev.jsonl.gz", "validation"),
        ("VAL.tsv.zst", "validation"),
        ("test.en.json", "test"),
        ("training.jsonl", "train"),
        ("rows.jsonl", None),
        ("trains.jsonl", None),
        ("my-train.jsonl", None),
    ],
)
def test_a_files_name_begins_with_its_split(name: str, split: SplitName | None) -> None:
    assert split_of(name) == split


def test_file_names_split_the_rows(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "test.jsonl": json_lines(pairs(1)),
        "train-1.jsonl.gz": gzipped(json_lines(pairs(2))),
        "notes.jsonl": json_lines(pairs(1)),
    }

    outcome = read_files(tmp_path, files, Recipe(division=Split(from_files=True)))

    assert [raw.split for raw in outcome.raw_rows] == ["test", "train", "train"]
    assert outcome.problems == [
        (
            "notes.jsonl: the file name notes.jsonl has no split; expected a name that begins "
            "with train,"
            " validation or test; rename the file, or remove split.fromFiles"
        )
    ]


def test_positions_name_the_file_only_if_there_are_several(tmp_path: Path) -> None:
    one = read(tmp_path, json_lines(pairs(1)))
    two = read_files(tmp_path, {"a": json_lines(pairs(1)), "b": json_lines(pairs(1))})

    assert [item.position.file for item in one.items] == [None]
    assert [item.position.file for item in two.items] == ["a", "b"]


def test_doccanos_table_may_have_columns_of_metadata(tmp_path: Path) -> None:
    outcome = read(tmp_path, "id,text,label,source\n1,a,b,mail\n")

    assert (outcome.format, outcome.problems, outcome.unused) == ("Doccano", [], ("source",))
