"""Prompt/completion lines, chats and CSV: what is read, and as what."""

import logging
from pathlib import Path

import pytest

from finetune_trainer.contract import Columns, FailureReason, Split
from tests.trainer.preparing import Preparation, chat, json_lines, pairs

ALL_TRAIN = Split(validation=0, test=0)


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


def test_json_lines_of_prompts_and_completions_become_a_dataset(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(100)))

    result = preparation.run(source)

    assert result.format == "PromptCompletion"
    assert sorted(row["prompt"] for row in preparation.all_rows(result)) == sorted(
        row["prompt"] for row in pairs(100)
    )
    assert [split.name for split in result.splits] == ["train", "validation", "test"]
    assert sum(split.rows for split in result.splits) == result.statistics.source_rows == 100
    assert result.statistics.distinct_completions == 100


def test_rows_stay_in_the_order_of_the_source(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))

    assert preparation.rows(preparation.run(source, split=ALL_TRAIN), "train") == pairs(50)


def test_chats_are_found_by_their_messages(preparation: Preparation) -> None:
    rows = [
        chat("hello", "good day"),
        chat("be brief", "hello", "hi", "and?", "bye", roles=("system",)),
    ]
    rows[1]["messages"][1:] = chat("hello", "hi", "and?", "bye")["messages"]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=ALL_TRAIN)

    assert result.format == "ChatMessages"
    assert preparation.rows(result, "train") == rows


def test_csv_is_found_by_its_header_and_read_by_columns(preparation: Preparation) -> None:
    source = preparation.write(
        "rows.csv", 'id,text,label\n1,"two\nlines, and a ""quote""",billing\n\n2,plain,dispatch\n'
    )

    result = preparation.run(source, columns=Columns(prompt="text", completion="label"), split=ALL_TRAIN)

    assert result.format == "CSV"
    assert preparation.rows(result, "train") == [
        {"prompt": 'two\nlines, and a "quote"', "completion": "billing"},
        {"prompt": "plain", "completion": "dispatch"},
    ]


def test_columns_name_the_fields_of_json_too(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([{"text": "a", "label": "b"}]))

    result = preparation.run(source, columns=Columns(prompt="text", completion="label"), split=ALL_TRAIN)

    assert preparation.rows(result, "train") == [{"prompt": "a", "completion": "b"}]


def test_columns_name_the_messages_of_chats(preparation: Preparation) -> None:
    row = {"turns": chat("a", "b")["messages"], "prompt": "unused"}
    source = preparation.write("rows.jsonl", json_lines([row]))

    result = preparation.run(source, columns=Columns(messages="turns"), split=ALL_TRAIN)

    assert preparation.rows(result, "train") == [chat("a", "b")]


def test_a_byte_order_mark_is_no_part_of_the_first_row(preparation: Preparation) -> None:
    lines = preparation.write("rows.jsonl", b"\xef\xbb\xbf" + json_lines(pairs(1)).encode())
    table = preparation.write("rows.csv", b"\xef\xbb\xbfprompt,completion\na,b\n")

    assert preparation.rows(preparation.run(lines, split=ALL_TRAIN), "train") == pairs(1)
    assert preparation.rows(preparation.run(table, split=ALL_TRAIN), "train") == [
        {"prompt": "a", "completion": "b"}
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", json_lines(pairs(40))),
        ("rows.csv", "prompt,completion\n" + "".join(f'"two\nlines {n}",b\n' for n in range(40))),
    ],
)
def test_line_ends_of_the_file_do_not_change_the_version(
    preparation: Preparation, name: str, content: str
) -> None:
    unix = preparation.run(preparation.write(name, content))
    windows = preparation.run(preparation.write(name, content.replace("\n", "\r\n")))

    assert windows.dataset == unix.dataset
    assert windows.source != unix.source
    assert windows.preparation == unix.preparation


def test_the_same_source_prepared_twice_is_the_same_version(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(40)))

    assert preparation.run(source) == preparation.run(source)


def test_other_settings_have_another_preparation_digest(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(40)))
    digests = {
        preparation.run(source, **settings).preparation
        for settings in ({}, {"split": Split(seed=1)}, {"on_invalid_rows": "Drop"})
    }

    assert len(digests) == 3


def test_files_of_a_folder_are_read_in_the_order_of_their_names(
    preparation: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pairs(4)
    preparation.write("b.jsonl", json_lines(rows[2:]))
    preparation.write("a.jsonl", json_lines(rows[:2]))
    preparation.write("README.md", "about")
    source = preparation.write("..data", "the kubelet's own").parent

    with caplog.at_level(logging.WARNING):
        result = preparation.run(source, split=ALL_TRAIN)

    assert preparation.rows(result, "train") == rows
    assert [record.getMessage() for record in caplog.records] == [
        "not read, because it is none of .csv .json .jsonl .ndjson: README.md"
    ]


def test_files_of_a_folder_must_have_one_format(preparation: Preparation) -> None:
    preparation.write("a.jsonl", json_lines(pairs(2)))
    source = preparation.write("b.csv", "prompt,completion\na,b\n").parent

    assert preparation.problems(source) == [
        "b.csv: the file is CSV; expected PromptCompletion, as the first file; keep one format a source"
    ]


def test_a_forced_format_is_not_looked_for(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([chat("a", "b"), *pairs(1)]))

    assert preparation.problems(source, format="ChatMessages")[0].startswith(
        "row 2: is a prompt with its completion"
    )


def test_exact_duplicates_are_left_out_and_contradictions_are_told(
    preparation: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*pairs(2), *pairs(1), {"prompt": "question 0", "completion": "something else"}]
    source = preparation.write("rows.jsonl", json_lines(rows))

    with caplog.at_level(logging.WARNING):
        result = preparation.run(source, split=ALL_TRAIN)

    assert preparation.rows(result, "train") == [rows[0], rows[1], rows[3]]
    assert result.statistics.duplicate_rows == 1
    assert "1 rows have the input of an earlier row and another output" in caplog.text


def test_a_field_that_is_not_used_is_named_once(
    preparation: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "source": "mail"} for row in pairs(3)]
    source = preparation.write("rows.jsonl", json_lines(rows))

    with caplog.at_level(logging.WARNING):
        preparation.run(source, split=ALL_TRAIN)

    assert [record.getMessage() for record in caplog.records] == ['fields that are not used: "source"']


def test_statistics_count_characters(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([chat("äb", "c"), chat("abcd", "ef")]))

    statistics = preparation.run(source, split=ALL_TRAIN).statistics

    assert (statistics.prompt_characters_mean, statistics.prompt_characters_max) == (3.0, 4)
    assert (statistics.completion_characters_mean, statistics.completion_characters_max) == (1.5, 2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "file: the file is empty; expected at least one row; add rows"),
        (b"\n \n", "file: the file is empty; expected at least one row; add rows"),
        (b"prompt,completion\n", "file: no rows; expected at least one row; add rows"),
        (
            b"\xff\xfep\x00r\x00",
            "file: the file is UTF-16 text; expected JSON Lines or CSV in UTF-8; save it",
        ),
        (b"\x1f\x8b\x08", "file: the file is compressed by gzip"),
        (b"PK\x03\x04...", "file: the file is a ZIP archive or a spreadsheet"),
        (b"PAR1....", "file: the file is Parquet"),
        (
            b'[{"prompt": "a"}]',
            "file: the file is one JSON list; expected one JSON object on each line; convert",
        ),
        (b'{\n "prompt": "a"\n}', "file: the file is JSON objects over several lines each"),
        (b"hello\n", "file: the first line is neither a JSON object nor a header with commas: 'hello'"),
        (
            b'{"text": "a", "label": "b"}',
            'file: the rows have the fields "text", "label"; expected "prompt" and',
        ),
        (b"text,label\na,b\n", 'file: the header has no column "prompt", "completion", but "text", "label"'),
        (b"prompt,completion,prompt\na,b,c\n", 'file: the header has "prompt" twice'),
    ],
)
def test_a_file_that_is_none_of_ours_says_what_it_is(
    preparation: Preparation, content: bytes, problem: str
) -> None:
    failure = preparation.failure(preparation.write("rows", content))

    assert failure.reason is FailureReason.INVALID_DATA
    assert failure.prepare is not None
    assert failure.prepare.problems[0].startswith(problem)


def test_a_header_with_other_separators_is_named(preparation: Preparation) -> None:
    source = preparation.write("rows.csv", "prompt;completion\na;b\n")

    assert preparation.problems(source, format="CSV") == [
        'file: the header is separated by ";"; expected commas; export it again separated by commas'
    ]


def test_prompt_and_completion_cannot_be_one_column(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(1)))

    failure = preparation.failure(source, columns=Columns(completion="prompt"))

    assert failure.reason is FailureReason.INVALID_CONFIG
