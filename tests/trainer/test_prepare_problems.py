"""Bad rows: every one is told, with its number, what is wrong and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract import Columns, ExitCode, FailureReason, Split
from finetune_trainer.prepare.source import MAX_ROW_BYTES
from tests.trainer.preparing import RUN, Preparation, chat, json_lines, pairs


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


GOOD = json.dumps({"prompt": "a", "completion": "b"})
PAIR_PROBLEMS: list[tuple[bytes, str]] = [
    (b'{"prompt": "a", "completion" "b"}', "not valid JSON at column 30: Expecting ':' delimiter"),
    (b'["a", "b"]', "is a list; expected one JSON object on each line"),
    (b'"a"', "is text; expected one JSON object"),
    (b"{}", '"prompt" is missing (it is an empty object)'),
    (b'{"completion": "b"}', '"prompt" is missing (it has "completion")'),
    (b'{"prompt": "a", "label": "b"}', '"completion" is missing (it has "prompt", "label")'),
    (b'{"prompt": "", "completion": "b"}', "prompt is empty; expected text"),
    (b'{"prompt": "a", "completion": " \\n"}', "completion is empty; expected text"),
    (b'{"prompt": 7, "completion": "b"}', "prompt is a number; expected text; write prompt as a string"),
    (b'{"prompt": "a", "completion": null}', "completion is null; expected text"),
    (b'{"prompt": "a", "completion": true}', "completion is true or false; expected text"),
    (b'{"prompt": ["a"], "completion": "b"}', "prompt is a list; expected text"),
    (b'{"prompt": "a\\u0000", "completion": "b"}', "prompt has the control character U+0000 at character 2"),
    (b'{"prompt": "a\\u001b[1m", "completion": "b"}', "prompt has the control character U+001B"),
    (b'{"prompt": "a \\ud83d", "completion": "b"}', "prompt has U+D83D, half of a character, at character 3"),
    (
        b'{"prompt": "a", "prompt": "c", "completion": "b"}',
        'not valid JSON: the field "prompt" is there twice',
    ),
    (
        b'{"prompt": "caf\xe9", "completion": "b"}',
        "byte 16 (0xE9) is not UTF-8; expected UTF-8; save the file",
    ),
    (
        b'{"messages": [{"role": "user", "content": "a"}]}',
        'is a chat row, with "messages"; expected prompt and',
    ),
    (b'{"\\ud83d": 1, "completion": "b"}', '"prompt" is missing (it has "\\ud83d", "completion")'),
    (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
    (b'{"a":' * 100_000, "nested too deep"),
]


@pytest.mark.parametrize(("line", "problem"), PAIR_PROBLEMS)
def test_a_bad_line_is_told_by_its_number(preparation: Preparation, line: bytes, problem: str) -> None:
    source = preparation.write("rows.jsonl", GOOD.encode() + b"\n\n" + line + b"\n" + GOOD.encode())

    failure = preparation.failure(source)

    assert (failure.reason, failure.exit_code) == (FailureReason.INVALID_DATA, ExitCode.BAD_DATA)
    assert failure.prepare is not None
    assert failure.prepare.statistics.invalid_rows == 1
    assert failure.prepare.problems[0].startswith(f"row 3: {problem}")
    assert f"1 of 3 rows are invalid: row 3: {problem}" in failure.message


CHAT_PROBLEMS: list[tuple[Any, str]] = [
    ({"messages": []}, "messages is an empty list; expected a list of messages"),
    ({"messages": "hello"}, "messages is text; expected a list of messages"),
    ({"prompt": "a", "completion": "b"}, "is a prompt with its completion; expected"),
    ({"text": "a"}, '"messages" is missing (it has "text")'),
    ({"messages": ["hello"]}, "messages[0] is text; expected an object with role and content"),
    (chat("a", "b", roles=("user", "bot")), "messages[1].role is 'bot'; expected system, user or assistant"),
    ({"messages": [{"content": "a"}]}, "messages[0].role is missing"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
    (chat("a", ""), "messages[1].content is empty"),
    (chat("a"), "messages has no assistant turn; expected an answer to learn"),
    (chat("a", "b", "c"), "messages ends with user; expected the assistant's turn last"),
    (
        chat("a", "b", "c", roles=("user", "user", "assistant")),
        "messages[1] is from user; expected assistant",
    ),
    (chat("a", "b", roles=("assistant",)), "messages[0] is from assistant; expected user"),
    (
        chat("a", "b", "c", roles=("user", "system", "assistant")),
        "messages[1] is a system message; expected system first only",
    ),
    ({**chat("a", "b"), "tools": []}, "tools is not supported; expected rows without tools; remove it"),
    (
        {"messages": [*chat("a")["messages"], {"role": "assistant", "content": "b", "weight": 0}]},
        "messages[1].weight is not supported",
    ),
]


@pytest.mark.parametrize(("row", "problem"), CHAT_PROBLEMS)
def test_a_bad_chat_is_told_by_its_number(preparation: Preparation, row: Any, problem: str) -> None:
    source = preparation.write("rows.jsonl", json_lines([chat("a", "b"), chat("c", "d"), row]))

    assert preparation.problems(source)[0].startswith(f"row 3: {problem}")


CSV_PROBLEMS: list[tuple[bytes, str]] = [
    (b"a,b,c\n", "has 3 fields; expected 2, as in the header; quote texts with commas"),
    (b"a\n", "has 1 fields; expected 2, as in the header; add what is missing"),
    (b'"a"b,c\n', "not valid CSV: ',' expected after '\"'; expected RFC 4180"),
    (b",b\n", "prompt is empty"),
    (b"caf\xe9,b\n", "prompt has the byte 0xE9, which is not UTF-8"),
    (b"a\x00,b\n", "prompt has the control character U+0000"),
]


@pytest.mark.parametrize(("record", "problem"), CSV_PROBLEMS)
def test_a_bad_record_is_told_by_its_number_and_the_line_where_it_begins(
    preparation: Preparation, record: bytes, problem: str
) -> None:
    source = preparation.write("rows.csv", b'prompt,completion\n"two\nlines",b\n\n' + record + b"c,d\n")

    failure = preparation.failure(source)

    assert failure.prepare is not None
    assert failure.prepare.problems[0].startswith(f"row 2 (line 5): {problem}")
    assert failure.prepare.statistics.source_rows == 3
    assert failure.prepare.statistics.invalid_rows == 1


def test_a_quote_that_is_never_closed_names_its_line(preparation: Preparation) -> None:
    source = preparation.write("rows.csv", 'prompt,completion\na,b\n"c,d\n' + "e,f\n" * 10)

    failure = preparation.failure(source, on_invalid_rows="Drop")

    assert failure.message.startswith(
        "the source cannot be read to its end: row 2 (line 3): a quote that opens here is not closed"
    )
    assert "Drop" not in failure.message


def test_a_line_without_an_end_is_refused_and_not_kept_in_memory(preparation: Preparation) -> None:
    row = b'{"prompt": "' + b"a" * (2 * MAX_ROW_BYTES) + b'", "completion": "b"}\n'
    source = preparation.write("rows.jsonl", GOOD.encode() + b"\n" + row + GOOD.encode())

    failure = preparation.failure(source)

    assert failure.prepare is not None
    assert failure.prepare.problems == (
        "row 2: longer than 16 MiB; expected one JSON object on each line; check the line ends",
    )
    assert failure.prepare.statistics.source_rows == 3


def test_every_bad_row_is_in_the_store_and_the_first_ten_are_in_the_result(preparation: Preparation) -> None:
    rows = [*pairs(3), *({"prompt": "x" * 300 + str(number)} for number in range(30))]
    source = preparation.write("rows.jsonl", json_lines(rows))

    failure = preparation.failure(source)

    assert failure.prepare is not None
    assert failure.prepare.problem_count == failure.prepare.statistics.invalid_rows == 30
    assert len(failure.prepare.problems) == 10
    assert all(len(problem) <= 200 for problem in failure.prepare.problems)
    log = preparation.store.run_folder(RUN, "prepare").path / "problems.jsonl"
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [problem["row"] for problem in logged] == list(range(4, 34))
    assert logged[0] == {
        "file": None,
        "row": 4,
        "line": 4,
        "problem": '"completion" is missing (it has "prompt")',
        "expected": 'the field "completion"',
        "fix": "add it, or map another field in columns",
    }
    assert f"All 30 problems: pvc://artifacts/runs/{RUN}/prepare/problems.jsonl" in failure.message


def test_all_that_is_wrong_with_a_row_is_told(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([{"prompt": "", "completion": 3}]))

    failure = preparation.failure(source)

    assert failure.prepare is not None
    assert [problem.split(";")[0] for problem in failure.prepare.problems] == [
        "row 1: prompt is empty",
        "row 1: completion is a number",
    ]
    assert failure.prepare.statistics.invalid_rows == 1


def test_a_bad_row_in_one_of_several_files_names_the_file(preparation: Preparation) -> None:
    preparation.write("a.jsonl", json_lines(pairs(2)))
    source = preparation.write("b.jsonl", json_lines([*pairs(1), {"prompt": ""}])).parent

    assert preparation.problems(source)[0].startswith("b.jsonl row 2: prompt is empty")


def test_problems_of_an_earlier_try_are_gone_after_a_good_one(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([{"prompt": ""}]))
    preparation.failure(source)
    source.write_text(json_lines(pairs(5)))

    preparation.run(source, split=Split(validation=0, test=0))

    assert list(preparation.store.run_folder(RUN, "prepare").path.iterdir()) == []


def test_dropped_rows_are_left_out_and_told(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(9), {"prompt": ""}]))

    result = preparation.run(
        source, on_invalid_rows="Drop", max_invalid_fraction=0.1, split=Split(validation=0, test=0)
    )

    assert preparation.rows(result, "train") == pairs(9)
    assert (result.statistics.source_rows, result.statistics.invalid_rows) == (10, 1)
    assert result.problems[0].startswith("row 10: prompt is empty")


def test_more_bad_rows_than_allowed_are_refused(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(8), {"prompt": ""}, {"prompt": ""}]))

    failure = preparation.failure(source, on_invalid_rows="Drop", max_invalid_fraction=0.1)

    assert failure.message.startswith(
        "2 of 10 rows (20.0%) are invalid, more than maxInvalidFraction 0.1: row 9: prompt is empty"
    )


def test_nothing_left_to_train_on_says_where_the_rows_went(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(2), {"prompt": ""}]))

    failure = preparation.failure(source, on_invalid_rows="Drop", split=Split(validation=0, test=0.999999))

    assert (failure.reason, failure.exit_code) == (FailureReason.NO_TRAINING_ROWS, ExitCode.BAD_DATA)
    assert "of 3 rows 1 are invalid, 0 duplicates, 0 fell to validation (0) and 2 to test" in failure.message
    assert "lower split.validation and split.test" in failure.message


def test_a_missing_group_is_a_problem_of_the_row(preparation: Preparation) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "customer": 7},
        {"prompt": "c", "completion": "d"},
        {"prompt": "e", "completion": "f", "customer": ""},
        {"prompt": "g", "completion": "h", "customer": 1.5},
    ]
    source = preparation.write("rows.jsonl", json_lines(rows))

    problems = preparation.problems(source, split=Split(group_by="customer"))

    assert [problem.split(";")[0] for problem in problems] == [
        "row 2: customer, which split.groupBy names, is missing",
        "row 3: customer, which split.groupBy names, is empty",
        "row 4: customer, which split.groupBy names, is a number",
    ]


def test_a_csv_without_the_group_column_names_the_columns_that_are_there(preparation: Preparation) -> None:
    source = preparation.write("rows.csv", "text,label\na,b\n")

    problems = preparation.problems(
        source, columns=Columns(prompt="text", completion="label"), split=Split(group_by="customer")
    )

    assert problems[0].startswith('file: the header has no column "customer", but "text", "label"')
