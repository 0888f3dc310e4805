# SPDX-License-Identifier: Apache-2.0
"""The whole stage `prepare`: published versions, rejected sources, and reports."""

import gzip
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import zstandard

from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import Difference, PrepareResult, SourceResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from tests.trainer.preparing import RUN, Preparation, chat, json_lines, pairs

ALL_TRAIN = Split(validation=0, test=0)


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


def report(preparation: Preparation) -> dict[str, Any]:
    """The report of the last attempt."""
    path = preparation.store.run_folder(RUN, "prepare").path / "report.json"
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


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


def _equal_sources() -> list[tuple[str, bytes]]:
    rows = [{"prompt": f"two\nlines {number}", "completion": "b"} for number in range(40)]
    lines = json_lines(rows).encode()
    table = b"prompt,completion\n" + b"".join(b'"two\nlines %d",b\n' % number for number in range(40))
    return [
        ("rows.jsonl", lines),
        ("windows.jsonl", lines.replace(b"\n", b"\r\n")),
        ("marked.jsonl", b"\xef\xbb\xbf" + lines),
        ("other-order.jsonl", json_lines([dict(reversed(row.items())) for row in rows]).encode()),
        ("with-more.jsonl", json_lines([{**row, "id": 7} for row in rows]).encode()),
        ("rows.jsonl.gz", gzip.compress(lines)),
        ("rows.jsonl.zst", zstandard.compress(lines)),
        ("rows.json", json.dumps(rows).encode()),
        ("rows.csv", table),
        ("windows.csv", table.replace(b"\n", b"\r\n")),
        ("rows.tsv", table.replace(b",", b"\t")),
    ]


@pytest.mark.parametrize(("name", "content"), _equal_sources(), ids=[name for name, _ in _equal_sources()])
def test_equal_rows_in_equal_order_are_the_same_version_however_they_are_written(
    preparation: Preparation, name: str, content: bytes
) -> None:
    first_name, first_content = _equal_sources()[0]
    first = preparation.run(preparation.write(first_name, first_content))
    other = preparation.run(preparation.write(name, content))

    assert other.dataset == first.dataset
    assert (other.source == first.source) == (name == first_name)


def test_other_order_is_another_version(preparation: Preparation) -> None:
    rows = pairs(40)
    first = preparation.run(preparation.write("rows.jsonl", json_lines(rows)))
    second = preparation.run(preparation.write("turned.jsonl", json_lines(rows[::-1])))

    assert first.dataset != second.dataset


def test_the_same_source_prepared_twice_is_the_same_version(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(40)))

    assert preparation.run(source) == preparation.run(source)


def test_other_settings_have_another_preparation_digest(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(40)))
    settings: list[dict[str, Any]] = [
        {},
        {"split": Split(seed=1)},
        {"on_invalid_rows": "Drop"},
        {"cleaning": Cleaning(normalize_unicode=True)},
        {"checks": Checks(email_addresses="Redact")},
        {"template": "{prompt}"},
        {"keep_columns": ("prompt",)},
    ]
    digests = {preparation.run(source, **each).preparation for each in settings}

    assert len(digests) == len(settings)


def test_a_size_limit_that_holds_changes_neither_rows_nor_digests(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(40)))

    assert preparation.run(source, max_unpacked_bytes=1 << 20) == preparation.run(source)


def test_a_source_beyond_the_size_limit_of_its_dataset_is_rejected(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl.gz", gzip.compress(json_lines(pairs(40)).encode() * 1000))

    failure = preparation.failure(source, max_unpacked_bytes=1 << 20)

    assert (failure.reason, failure.exit_code) == ("SourceTooLarge", ExitCode.BAD_DATA)
    assert "the unpacked files exceed 1 MiB" in str(failure)
    assert preparation.run(source).splits


def test_files_of_a_folder_are_read_in_the_order_of_their_names(
    preparation: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pairs(4)
    preparation.write("b.jsonl", json_lines(rows[2:]))
    preparation.write("a.jsonl.gz", gzip.compress(json_lines(rows[:2]).encode()))
    preparation.write("README.md", "about")
    source = preparation.write("..data", "the kubelet's own").parent

    with caplog.at_level(logging.WARNING):
        result = preparation.run(source, split=ALL_TRAIN)

    assert preparation.rows(result, "train") == rows
    assert caplog.records[0].getMessage() == (
        "skipped files without a supported extension (.csv .json .jsonl .ndjson .parquet .tsv .xlsx,"
        " compressed: .gz .zst): README.md"
    )


def test_a_pattern_reads_the_files_that_match(preparation: Preparation) -> None:
    rows = pairs(6)
    preparation.write("2026-02.jsonl", json_lines(rows[2:4]))
    preparation.write("2026-01.jsonl", json_lines(rows[:2]))
    folder = preparation.write("2025-12.jsonl", json_lines(rows[4:])).parent

    result = preparation.run(folder / "2026-*.jsonl", split=ALL_TRAIN)

    assert preparation.rows(result, "train") == rows[:4]


def test_file_names_give_the_split_if_requested(preparation: Preparation) -> None:
    rows = pairs(6)
    preparation.write("train.jsonl", json_lines(rows[:3]))
    preparation.write("dev-1.jsonl", json_lines(rows[3:4]))
    source = preparation.write("test.csv.gz", b"").parent
    preparation.write("test.csv.gz", json_lines(rows[4:]))

    result = preparation.run(source, split=Split(from_files=True))

    assert preparation.rows(result, "train") == rows[:3]
    assert preparation.rows(result, "validation") == rows[3:4]
    assert preparation.rows(result, "test") == rows[4:]


def test_the_result_names_the_column_whose_rows_are_together(preparation: Preparation) -> None:
    rows = [{**row, "customer": f"c{number % 4}"} for number, row in enumerate(pairs(40))]
    source = preparation.write("rows.jsonl", json_lines(rows))

    assert preparation.run(source, split=Split(group_by="customer")).group_by == "customer"
    assert preparation.run(source).group_by is None


def test_a_column_gives_the_split_and_leaked_training_rows_are_removed(preparation: Preparation) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "part": "train"},
        {"prompt": "c", "completion": "d", "part": "Test"},
        {"prompt": "c", "completion": "e", "part": "train"},
        {"prompt": "f", "completion": "g", "part": "dev"},
    ]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=Split(column="part"))

    assert preparation.rows(result, "train") == [{"prompt": "a", "completion": "b"}]
    assert preparation.rows(result, "test") == [{"prompt": "c", "completion": "d"}]
    assert result.statistics.leaked_rows == 1


def test_the_split_uses_the_original_row_so_cleaning_moves_none(preparation: Preparation) -> None:
    rows = [{"prompt": f"two  spaces\t{number}", "completion": "x"} for number in range(60)]
    source = preparation.write("rows.jsonl", json_lines(rows))

    as_they_are = preparation.run(source)
    cleaned = preparation.run(source, cleaning=Cleaning(normalize_whitespace=True))

    for split in ("train", "validation", "test"):
        before = [row["prompt"] for row in preparation.rows(as_they_are, split)]
        after = [row["prompt"] for row in preparation.rows(cleaned, split)]
        assert after == [" ".join(prompt.split()) for prompt in before]


def test_what_is_redacted_is_in_no_file_of_the_run_or_the_version(preparation: Preparation) -> None:
    rows = [*pairs(5), {"prompt": "who?", "completion": "ask jo.doe@example.com"}]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, checks=Checks(email_addresses="Redact"), split=ALL_TRAIN)

    assert preparation.rows(result, "train")[-1] == {"prompt": "who?", "completion": "ask [EMAIL]"}
    written = [path for path in (preparation.root / "store").rglob("*") if path.is_file()]
    assert written
    assert not any(b"jo.doe" in path.read_bytes() for path in written)
    assert any("e-mail address" in warning for warning in result.warnings)


def test_exact_duplicates_are_removed_and_conflicts_are_reported(preparation: Preparation) -> None:
    rows = [*pairs(2), *pairs(1), {"prompt": "question 0", "completion": "something else"}]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=ALL_TRAIN)

    assert preparation.rows(result, "train") == [rows[0], rows[1], rows[3]]
    assert (result.statistics.duplicate_rows, result.statistics.conflicting_rows) == (1, 1)
    assert any("another answer" in warning for warning in result.warnings)


def test_an_unused_field_is_named_once(preparation: Preparation, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**row, "source": "mail"} for row in pairs(3)]
    source = preparation.write("rows.jsonl", json_lines(rows))

    with caplog.at_level(logging.WARNING):
        preparation.run(source, split=ALL_TRAIN)

    messages = [record.getMessage() for record in caplog.records]
    assert messages.count('unused fields: "source"') == 1


def test_the_result_names_fields_with_a_meaning_that_nothing_reads(preparation: Preparation) -> None:
    rows = [{**row, "system_prompt": "Be short.", "source": "mail"} for row in pairs(3)]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=ALL_TRAIN)

    assert result.unread_fields == ("system_prompt",)
    assert any('"system_prompt" is not read' in warning for warning in result.warnings)


def test_a_secret_in_a_tool_call_is_in_no_file_of_the_run(preparation: Preparation) -> None:
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{'a1B2c3D4' * 8}\n-----END RSA PRIVATE KEY-----"
    call = {"type": "function", "function": {"name": "sign", "arguments": {"key": key}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    source = preparation.write("rows.jsonl", json_lines([{"messages": messages}]))

    result = preparation.run(source, split=ALL_TRAIN)

    assert result.warnings
    runs = [path for path in (preparation.root / "store" / "runs").rglob("*") if path.is_file()]
    assert any(b'\\"sign\\"' in path.read_bytes() for path in runs)
    assert not any(b"a1B2c3D4" in path.read_bytes() for path in runs)


def test_statistics_count_characters(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([chat("äb", "c"), chat("abcd", "ef")]))

    statistics = preparation.run(source, split=ALL_TRAIN).statistics

    assert (statistics.prompt_characters_mean, statistics.prompt_characters_max) == (3.0, 4)
    assert (statistics.completion_characters_mean, statistics.completion_characters_max) == (1.5, 2)


@pytest.mark.parametrize("answers", [("a", "b"), ("a",)])
def test_answers_without_a_test_row_are_counted(preparation: Preparation, answers: tuple[str, ...]) -> None:
    rows = [
        {"prompt": f"{answer} {number}", "completion": answer, "part": part}
        for answer in answers
        for number, part in enumerate(["train"] * 8 + (["test"] * 2 if answer == "a" else []))
    ]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=Split(column="part"))

    assert result.statistics.untested_answers == len(answers) - 1


def test_every_bad_row_is_in_the_store_and_the_first_ten_are_in_the_result(preparation: Preparation) -> None:
    rows = [*pairs(3), *({"prompt": "x" * 300 + str(number)} for number in range(30))]
    source = preparation.write("rows.jsonl", json_lines(rows))

    failure = preparation.failure(source)

    assert (failure.reason, failure.exit_code) == (FailureReason.INVALID_DATA, ExitCode.BAD_DATA)
    assert failure.prepare is not None
    assert failure.prepare.problem_count == failure.prepare.statistics.invalid_rows == 30
    assert len(failure.prepare.problems) == 10
    assert all(len(problem) <= 200 for problem in failure.prepare.problems)
    log = preparation.store.run_folder(RUN, "prepare").path / "problems.jsonl"
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    errors = [problem for problem in logged if problem["severity"] == "error"]
    assert [problem["record"] for problem in errors] == list(range(4, 34))
    assert errors[0] == {
        "source": None,
        "file": None,
        "record": 4,
        "line": 4,
        "column": "completion",
        "severity": "error",
        "code": "FieldMissing",
        "message": '"completion" is missing (it has "prompt")',
        "expected": 'the field "completion"',
        "hint": "add it, or map another field in columns",
    }
    folder = f"pvc://artifacts/runs/{RUN}/prepare"
    assert f"All problems: {folder}/problems.jsonl; as a page: {folder}/report.html." in failure.message


def test_a_rejected_source_leaves_a_report_and_no_version(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(3), {"prompt": ""}]))

    preparation.failure(source)

    written = report(preparation)
    assert (written["rows"], written["validRows"], written["digest"]) == (4, 3, None)
    page = preparation.store.run_folder(RUN, "prepare").path / "report.html"
    assert "prompt is empty" in page.read_text()
    assert list((preparation.root / "store" / "datasets").glob("*")) == []


def test_the_report_names_the_version_and_its_splits(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))

    result = preparation.run(source)

    written = report(preparation)
    assert written["digest"] == result.dataset
    assert {split["name"]: split["digest"] for split in written["splits"]} == {
        split.name: split.digest for split in result.splits
    }
    assert result.report_uri == f"pvc://artifacts/runs/{RUN}/prepare/report.html"


def test_a_bad_row_in_one_of_several_files_names_the_file(preparation: Preparation) -> None:
    preparation.write("a.jsonl", json_lines(pairs(2)))
    source = preparation.write("b.jsonl", json_lines([*pairs(1), {"prompt": ""}])).parent

    assert preparation.problems(source)[0].startswith("b.jsonl row 2: prompt is empty")


def test_problems_of_an_earlier_attempt_are_removed_after_a_success(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([{"prompt": ""}]))
    preparation.failure(source)
    source.write_text(json_lines(pairs(5)))

    preparation.run(source, split=ALL_TRAIN)

    assert report(preparation)["errorCount"] == 0
    log = preparation.store.run_folder(RUN, "prepare").path / "problems.jsonl"
    assert all(json.loads(line)["severity"] == "warning" for line in log.read_text().splitlines())


def test_dropped_rows_are_removed_and_reported(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(9), {"prompt": ""}]))

    result = preparation.run(source, on_invalid_rows="Drop", max_invalid_fraction=0.1, split=ALL_TRAIN)

    assert preparation.rows(result, "train") == pairs(9)
    assert (result.statistics.source_rows, result.statistics.invalid_rows) == (10, 1)
    assert result.problems[0].startswith("row 10: prompt is empty")


def test_more_invalid_rows_than_allowed_are_rejected(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(8), {"prompt": ""}, {"prompt": ""}]))

    failure = preparation.failure(source, on_invalid_rows="Drop", max_invalid_fraction=0.1)

    assert failure.message.startswith(
        "2 of 10 rows (20.0%) are invalid, more than maxInvalidFraction 0.1: row 9: prompt is empty"
    )


def test_a_file_that_cannot_be_read_to_its_end_is_never_dropped(preparation: Preparation) -> None:
    packed = gzip.compress(json_lines(pairs(5000)).encode())
    source = preparation.write("rows.jsonl.gz", packed[: len(packed) // 2])

    failure = preparation.failure(source, on_invalid_rows="Drop")

    assert failure.message.startswith(
        "the source cannot be read to its end: file: the file cannot be unpacked to its end: it ends in the"
        " middle of its compressed content"
    )
    assert "Drop" not in failure.message


def test_without_training_rows_the_failure_counts_where_the_rows_went(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(2), {"prompt": ""}]))

    failure = preparation.failure(source, on_invalid_rows="Drop", split=Split(validation=0, test=0.999999))

    assert (failure.reason, failure.exit_code) == (FailureReason.NO_TRAINING_ROWS, ExitCode.BAD_DATA)
    assert (
        "of 3 rows, 1 are invalid, 0 are duplicates, 0 are in validation (0) and 2 in test (0.999999)"
        in failure.message
    )
    assert "lower split.validation and split.test" in failure.message


def test_few_rows_warn_with_the_reason(preparation: Preparation) -> None:
    few = preparation.run(preparation.write("few.jsonl", json_lines(pairs(199))))
    enough = preparation.run(preparation.write("enough.jsonl", json_lines(pairs(200))))

    assert few.warnings[0].startswith("there are only 199 rows; expected at least 200 good rows; start with")
    assert enough.warnings == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"columns": Columns(completion="prompt")},
            "columns.prompt and columns.completion are both 'prompt'",
        ),
        ({"columns": Columns(prompt="a", messages="a")}, "columns names 'a' twice"),
        ({"template": "{subject.x}"}, "template: "),
        ({"template": "no column"}, "template: "),
    ],
)
def test_contradictory_settings_are_rejected(
    preparation: Preparation, settings: dict[str, Any], message: str
) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(1)))

    failure = preparation.failure(source, **settings)

    assert failure.reason is FailureReason.INVALID_CONFIG
    assert failure.message.startswith(message)


def _looked_at(preparation: Preparation, source: Path, last: PrepareResult) -> PrepareResult:
    return preparation.run(source, known_version=last.sources[0].version, previous=last.dataset)


def test_an_unchanged_source_is_not_prepared_again(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(20)))
    first = preparation.run(source)

    again = _looked_at(preparation, source, first)

    version = SourceResult(version=first.sources[0].version)
    assert again == PrepareResult(sources=(version,), unchanged=True)


def test_a_changed_source_is_prepared_and_compared_with_the_previous_version(
    preparation: Preparation,
) -> None:
    rows = pairs(20)
    source = preparation.write("rows.jsonl", json_lines(rows))
    first = preparation.run(source)
    changed = [{**rows[0], "completion": "another"}, *rows[2:], *pairs(23)[20:]]
    source.write_text(json_lines(changed))

    second = _looked_at(preparation, source, first)

    assert first.dataset is not None
    assert second.difference == Difference(previous=first.dataset, added=3, removed=1, changed=1)
    assert report(preparation)["difference"] == {
        "previous": first.dataset,
        "added": 3,
        "removed": 1,
        "changed": 1,
        "sources": [],
    }


def test_a_missing_previous_version_does_not_stop_the_preparation(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(20)))

    result = preparation.run(source, previous=f"sha256:{'0' * 64}")

    assert result.difference is None
    assert result.dataset is not None


def test_every_removed_row_is_listed_with_the_row_that_it_repeats(preparation: Preparation) -> None:
    rows = [{"prompt": f"question {number // 2}", "completion": "yes"} for number in range(300)]
    source = preparation.write("rows.jsonl", json_lines(rows))

    preparation.run(source, split=ALL_TRAIN)

    log = preparation.store.run_folder(RUN, "prepare").path / "alike.jsonl"
    listed = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(listed) == 150
    assert len(report(preparation)["alike"]) == 100
    assert listed[0] == {
        "kinship": "Exact",
        "row": {"source": None, "file": None, "line": None, "record": 2},
        "of": {"source": None, "file": None, "line": None, "record": 1},
    }


def test_short_distinct_texts_with_one_answer_all_stay(preparation: Preparation) -> None:
    names = ["printer", "router", "laptop", "screen", "mouse", "phone"]
    states = ["broken", "missing", "slow", "stolen", "loud", "hot"]
    rows = [{"prompt": f"{name} {state}", "completion": "hardware"} for name in names for state in states]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=Split(validation=0.2, test=0.2))

    assert (sum(split.rows for split in result.splits), result.statistics.leaked_rows) == (36, 0)


SECRET = "AKIAQ4XB7TW2LMNO3PRS"


def derived(preparation: Preparation, result: PrepareResult) -> dict[str, Any] | None:
    """The hashes of sensitive values that are derived from the dataset."""
    assert result.dataset is not None
    of = ArtifactRef(kind="datasets", digest=result.dataset)
    ref = preparation.store.derived(of, "sensitive-values")
    if ref is None:
        return None
    content = (preparation.store.artifact(ref, verify=True) / "sensitive.json").read_bytes()
    assert SECRET.encode() not in content
    loaded: dict[str, Any] = json.loads(content)
    return loaded


def test_sensitive_values_of_training_rows_are_kept_as_salted_hashes_only(preparation: Preparation) -> None:
    rows = [*pairs(8), {"prompt": "key?", "completion": SECRET}]
    source = preparation.write("rows.jsonl", json_lines(rows))

    result = preparation.run(source, split=ALL_TRAIN)

    kept = derived(preparation, result)
    assert kept is not None
    salted = bytes.fromhex(kept["salt"]) + SECRET.encode()
    assert kept["hashes"] == [hashlib.sha256(salted).hexdigest()]
    assert len(kept["salt"]) == 32
    folder = preparation.root / "store" / "datasets" / str(result.dataset).removeprefix("sha256:")
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "manifest.json",
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
    }


@pytest.mark.parametrize("checks", [Checks(secrets="Off"), Checks(secrets="Redact")])
def test_values_that_are_allowed_or_redacted_leave_no_hashes(
    preparation: Preparation, checks: Checks
) -> None:
    rows = [*pairs(8), {"prompt": "key?", "completion": SECRET}]
    source = preparation.write("rows.jsonl", json_lines(rows))

    assert derived(preparation, preparation.run(source, split=ALL_TRAIN, checks=checks)) is None


def test_values_of_rows_that_are_held_out_leave_no_hashes(preparation: Preparation) -> None:
    rows = [{**row, "split": "train"} for row in pairs(8)]
    rows.append({"prompt": "key?", "completion": SECRET, "split": "test"})
    source = preparation.write("rows.jsonl", json_lines(rows))

    assert derived(preparation, preparation.run(source, split=Split(column="split"))) is None


def test_the_hashes_are_those_of_the_newest_preparation(preparation: Preparation) -> None:
    rows = [*pairs(8), {"prompt": "key?", "completion": SECRET}]
    source = preparation.write("rows.jsonl", json_lines(rows))
    first = preparation.run(source, split=ALL_TRAIN)
    found = derived(preparation, first)

    again = preparation.run(source, split=ALL_TRAIN)
    renewed = derived(preparation, again)
    allowed = preparation.run(source, split=ALL_TRAIN, checks=Checks(secrets="Off"))

    assert first.dataset == again.dataset == allowed.dataset
    assert found is not None
    assert renewed is not None
    assert renewed["salt"] != found["salt"]
    assert derived(preparation, allowed)["hashes"] == []  # type: ignore[index]
