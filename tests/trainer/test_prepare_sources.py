# SPDX-License-Identifier: Apache-2.0
"""Several sources of one Dataset in the stage `prepare`: order, splits, forms, origins and failures."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import SourceConfig
from finetune_trainer.contract.dataset import Columns, Split
from finetune_trainer.contract.results import (
    DataStatistics,
    Difference,
    PrepareResult,
    SourceDifference,
    SourceResult,
    SourceRows,
    SplitRecord,
    StageResult,
)
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.report.html_page import page
from finetune_trainer.runtime.termination import fit_message
from tests.trainer.preparing import RUN, Preparation, chat, json_lines, pairs

ALL_TRAIN = Split(validation=0, test=0)
BY_PART = Split(column="part")
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


def written(preparation: Preparation, name: str, rows: list[Any], **settings: Any) -> SourceConfig:
    """A source in a folder of its own, named in messages as the field of the spec that it would have."""
    path = preparation.write(f"{name}/{name}.jsonl", json_lines(rows))
    return preparation.source(path, **settings)


def report(preparation: Preparation) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        (preparation.store.run_folder(RUN, "prepare").path / "report.json").read_text()
    )
    return loaded


def in_part(part: str, *numbers: int) -> list[dict[str, Any]]:
    return [{**pairs(number + 1)[number], "part": part} for number in numbers]


def origins(result: PrepareResult, *sources: SourceConfig) -> tuple[SourceRows, ...]:
    """The origin of a version's rows, as the operator records it."""
    return tuple(
        SourceRows(uri=source.uri, train=found.train, validation=found.validation, test=found.test)
        for source, found in zip(sources, result.sources, strict=True)
    )


def test_sources_are_read_in_order_each_with_its_own_format_and_columns(preparation: Preparation) -> None:
    table = preparation.write("table.csv", "q,a\n" + "".join(f"question {n},answer {n}\n" for n in range(3)))
    chats = written(preparation, "chats", [chat("hello", "hi"), chat("bye", "see you")])

    result = preparation.run(
        preparation.source(table, columns=Columns(prompt="q", completion="a")), chats, split=ALL_TRAIN
    )

    assert preparation.rows(result, "train") == [*pairs(3), chat("hello", "hi"), chat("bye", "see you")]
    assert [(each.format, each.train) for each in result.sources] == [("CSV", 3), ("ChatMessages", 2)]
    assert result.format == "CSV, ChatMessages"
    assert report(preparation)["format"] is None
    assert [each["format"] for each in report(preparation)["sources"]] == ["CSV", "ChatMessages"]


def test_another_order_of_sources_is_another_version_and_no_row_moves(preparation: Preparation) -> None:
    first, second = written(preparation, "a", pairs(60)[:30]), written(preparation, "b", pairs(60)[30:])

    one, other = preparation.run(first, second), preparation.run(second, first)

    assert one.dataset != other.dataset
    assert one.source != other.source
    for split in ("train", "validation", "test"):
        rows = [sorted(row["prompt"] for row in preparation.rows(each, split)) for each in (one, other)]
        assert rows[0] == rows[1] != []


def test_rows_of_a_train_only_source_are_never_held_out(preparation: Preparation) -> None:
    checked = written(preparation, "checked", pairs(400)[:200])
    generated = written(preparation, "generated", pairs(400)[200:], splits="TrainOnly")

    result = preparation.run(checked, generated)
    alone = preparation.run(checked)

    first, second = result.sources
    assert (second.train, second.validation, second.test) == (200, 0, 0)
    assert (first.validation, first.test) == (alone.splits[1].rows, alone.splits[2].rows)
    for split in ("validation", "test"):
        assert preparation.rows(result, split) == preparation.rows(alone, split)


def test_rows_of_a_train_only_source_that_repeat_a_held_out_row_are_left_out_whatever_their_answer_is(
    preparation: Preparation,
) -> None:
    words = "The delivery of my third order to the old address in Bonn is late again and nobody answers"
    held_out = {"prompt": f"{words} 1", "completion": "late", "part": "validation"}
    near = {"prompt": f"{words} 2", "completion": "late"}
    repeated = [pairs(1)[0], {"prompt": "question 1", "completion": "another"}]
    conflicting = [{"prompt": "question 2", "completion": "another"}]
    checked = written(preparation, "checked", [*in_part("test", 0, 1), *in_part("train", 2, 3), held_out])
    generated = written(
        preparation,
        "generated",
        [*repeated, near, *conflicting, {"prompt": "new", "completion": "y", "part": "test"}],
        splits="TrainOnly",
    )

    result = preparation.run(checked, generated, split=BY_PART)

    assert preparation.rows(result, "test") == pairs(2)
    assert preparation.rows(result, "train") == [
        *pairs(4)[2:],
        *conflicting,
        {"prompt": "new", "completion": "y"},
    ]
    assert [each["leakedRows"] for each in report(preparation)["sources"]] == [0, 3]
    assert (result.statistics.leaked_rows, result.statistics.conflicting_rows) == (3, 1)
    leaks = [pair for pair in report(preparation)["alike"] if pair["kinship"].endswith("Leak")]
    assert {(pair["row"]["source"], pair["of"]["source"]) for pair in leaks} == {
        ("configmap://rows/generated.jsonl", "configmap://rows/checked.jsonl")
    }


def test_rows_of_a_train_only_source_in_the_group_of_a_held_out_row_are_left_out(
    preparation: Preparation,
) -> None:
    def rows(begin: int) -> list[dict[str, Any]]:
        return [{**pair, "customer": f"c{number % 20}"} for number, pair in enumerate(pairs(200)[begin:])]

    split = Split(validation=0.2, test=0.2, group_by="customer")
    checked = written(preparation, "checked", rows(0)[:100])
    generated = written(
        preparation, "generated", [*rows(100), {**pairs(300)[299], "customer": "new"}], splits="TrainOnly"
    )

    result = preparation.run(checked, generated, split=split, keep_columns=("customer",))

    held_out, trained = (
        {row["columns"]["customer"] for each in splits for row in preparation.rows(result, each)}
        for splits in (("validation", "test"), ("train",))
    )
    assert held_out
    assert not held_out & trained
    assert "new" in trained
    leaked = report(preparation)["sources"][1]["leakedRows"]
    assert leaked == 5 * len(held_out) == result.statistics.leaked_rows
    assert {pair["kinship"] for pair in report(preparation)["alike"]} == {"GroupLeak"}


@pytest.mark.parametrize("split", [Split(from_files=True), BY_PART])
def test_a_train_only_source_needs_no_split_of_its_own(preparation: Preparation, split: Split) -> None:
    preparation.write("checked/train.jsonl", json_lines(in_part("train", 0, 1)))
    folder = preparation.write("checked/test.jsonl", json_lines(in_part("test", 2))).parent
    checked = SourceConfig(uri="pvc://rows/checked", path=str(folder))
    generated = written(preparation, "generated", pairs(6)[3:], splits="TrainOnly")

    result = preparation.run(checked, generated, split=split)

    assert [(each.train, each.test) for each in result.sources] == [(2, 1), (3, 0)]


def test_eight_sources_with_the_same_file_have_its_rows_once_and_names_of_their_own(
    preparation: Preparation,
) -> None:
    source = written(preparation, "rows", [*pairs(20), {"prompt": "no answer"}])

    result = preparation.run(*[source] * 8, on_invalid_rows="Drop")

    assert len(preparation.all_rows(result)) == 20
    assert result.statistics.duplicate_rows == 140
    assert [each["rows"] for each in report(preparation)["sources"]] == [21] * 8
    assert sum(each.train + each.validation + each.test for each in result.sources[1:]) == 0
    assert [problem.partition(" row 21: ")[0] for problem in result.problems] == [
        f"configmap://rows/rows.jsonl (sources[{number}])" for number in range(8)
    ]


def test_the_same_file_both_ways_gives_the_rows_of_the_first_source_and_no_leak(
    preparation: Preparation,
) -> None:
    source = written(preparation, "rows", pairs(100))
    again = source.model_copy(update={"splits": "TrainOnly"})

    alone, result = preparation.run(source), preparation.run(source, again)

    assert result.dataset == alone.dataset
    held_out = alone.splits[1].rows + alone.splits[2].rows
    assert (result.statistics.leaked_rows, result.statistics.duplicate_rows) == (held_out, 100 - held_out)


def test_an_invalid_row_is_named_with_its_source(preparation: Preparation) -> None:
    good = written(preparation, "good", pairs(5))
    bad = written(preparation, "bad", [*pairs(8)[5:], {"prompt": "q"}])

    failure = preparation.failure(good, bad)

    assert failure.reason is FailureReason.INVALID_DATA
    assert failure.message.startswith(
        '1 of 9 rows are invalid: configmap://rows/bad.jsonl row 4: "completion" is missing'
    )
    problem = next(each for each in report(preparation)["problems"] if each["severity"] == "error")
    assert (problem["source"], problem["file"], problem["record"]) == ("configmap://rows/bad.jsonl", None, 4)
    assert [each["invalidRows"] for each in report(preparation)["sources"]] == [0, 1]


def test_a_source_whose_columns_differ_is_named_with_what_it_has(preparation: Preparation) -> None:
    good = preparation.write("good.csv", "prompt,completion\na,b\n")
    other = preparation.write("other.csv", "prompt,team\na,b\n")

    failure = preparation.failure(good, other)

    assert failure.reason is FailureReason.INVALID_DATA
    assert 'configmap://rows/other.csv: the header has no column "completion"' in failure.message


def test_sources_with_different_forms_of_rows_are_refused_with_both_names_and_forms(
    preparation: Preparation,
) -> None:
    answers = preparation.write("answers.csv", "prompt,completion\na,b\n")
    rated = written(preparation, "rated", [{"prompt": "q", "chosen": "a", "rejected": "b"}])

    failure = preparation.failure(answers, rated, on_invalid_rows="Drop")

    assert (failure.reason, failure.exit_code) == (FailureReason.INVALID_DATA, ExitCode.BAD_DATA)
    assert failure.message.startswith(
        "the sources have different forms of rows: configmap://rows/rated.jsonl has Preference rows (format"
        " Preference), but configmap://rows/answers.csv has PromptCompletion rows (format CSV); expected"
        " sources with rows of one form"
    )
    assert [
        each["code"] for each in report(preparation)["problemsByCode"] if each["severity"] == "error"
    ] == ["FormsDiffer"]


def test_a_source_without_rows_fails_although_the_others_have_some(preparation: Preparation) -> None:
    good, empty = written(preparation, "good", pairs(5)), written(preparation, "empty", [])

    failure = preparation.failure(good, empty, on_invalid_rows="Drop")

    assert failure.reason is FailureReason.INVALID_DATA
    assert failure.message.startswith(
        "the source cannot be read to its end: configmap://rows/empty.jsonl: the file is empty; expected at"
        " least one row"
    )


def test_a_table_without_records_fails_although_another_source_has_some(preparation: Preparation) -> None:
    good, empty = (
        written(preparation, "good", pairs(5)),
        preparation.write("empty.csv", "prompt,completion\n"),
    )

    failure = preparation.failure(good, empty, on_invalid_rows="Drop")

    assert failure.message.startswith(
        "the source has no rows: configmap://rows/empty.csv: no rows; expected at least one row"
    )


def test_a_source_that_is_gone_is_named_with_its_field(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.prepare.row_sources.POLL_SECONDS", 0.01)
    monkeypatch.setattr("finetune_trainer.prepare.row_sources.find_files.__defaults__", (0.0,))
    good, gone = written(preparation, "good", pairs(5)), written(preparation, "gone", pairs(5))
    gone = gone.model_copy(update={"field": "sources[1]"})
    Path(gone.path or "").unlink()

    failure = preparation.failure(good, gone)

    assert failure.reason is FailureReason.SOURCE_NOT_FOUND
    assert failure.message.startswith("configmap://rows/gone.jsonl: ")
    assert failure.message.endswith("create it, or correct sources[1].uri")


def test_columns_that_contradict_each_other_are_named_with_their_source(preparation: Preparation) -> None:
    good = written(preparation, "good", pairs(5))
    bad = written(preparation, "bad", pairs(5), columns=Columns(completion="prompt"), field="sources[1]")

    failure = preparation.failure(good, bad)

    assert failure.message == (
        "sources[1].columns.prompt and sources[1].columns.completion are both 'prompt'; name two columns"
    )


def test_the_size_limit_holds_for_all_sources_together(preparation: Preparation) -> None:
    text = json_lines({"prompt": "x" * 400_000 + str(number), "completion": "y"} for number in range(2))
    first, second = (preparation.write(f"{name}.jsonl", text) for name in "ab")

    failure = preparation.failure(first, second, max_unpacked_bytes=1 << 20)

    assert failure.reason is FailureReason.SOURCE_TOO_LARGE
    assert failure.message.startswith("configmap://rows/b.jsonl: the unpacked files exceed 1 MiB")
    assert preparation.run(first, max_unpacked_bytes=1 << 20).dataset


def test_sources_are_read_again_only_if_one_of_them_changed(
    preparation: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [written(preparation, "a", pairs(20)), written(preparation, "b", pairs(40)[20:])]
    first = preparation.run(*sources)

    def known() -> list[SourceConfig]:
        return [
            source.model_copy(update={"known_version": found.version})
            for source, found in zip(sources, first.sources, strict=True)
        ]

    assert preparation.run(*known()).unchanged
    assert not preparation.run(known()[0], sources[1]).unchanged
    Path(sources[1].path or "").write_text(json_lines(pairs(41)[20:]))
    with caplog.at_level(logging.INFO):
        second = preparation.run(*known(), previous=first.dataset, previous_sources=origins(first, *sources))

    assert "reading configmap://rows/b.jsonl" in caplog.messages
    assert second.difference is not None
    assert second.difference.sources == (SourceDifference(uri="configmap://rows/b.jsonl", added=1),)


def test_the_difference_counts_the_rows_of_each_source_also_of_one_that_is_gone(
    preparation: Preparation,
) -> None:
    kept, gone = written(preparation, "kept", pairs(30)), written(preparation, "gone", pairs(50)[30:])
    first = preparation.run(kept, gone)
    new = written(preparation, "new", [*pairs(60)[50:], {"prompt": "question 3", "completion": "better"}])
    Path(kept.path or "").write_text(json_lines([*pairs(3), *pairs(30)[4:]]))

    second = preparation.run(kept, new, previous=first.dataset, previous_sources=origins(first, kept, gone))

    found = second.difference
    assert found is not None
    assert (found.added, found.removed, found.changed) == (10, 20, 1)
    assert set(found.sources) == {
        SourceDifference(uri=new.uri, added=10, changed=1),
        SourceDifference(uri=gone.uri, removed=20),
    }
    shown = page(report(preparation))
    assert "2 sources" in shown
    assert "10 added, 0 removed, 1 with a different answer" in shown


def test_a_row_that_only_moved_to_another_source_is_no_difference(preparation: Preparation) -> None:
    first, second = written(preparation, "a", pairs(20)), written(preparation, "b", pairs(40)[20:])
    before = preparation.run(first, second)
    Path(first.path or "").write_text(json_lines(pairs(40)[:30]))
    Path(second.path or "").write_text(json_lines(pairs(40)[30:]))

    after = preparation.run(
        first, second, previous=before.dataset, previous_sources=origins(before, first, second)
    )

    assert after.dataset == before.dataset
    assert after.difference is not None
    assert (after.difference.added, after.difference.removed, after.difference.sources) == (0, 0, ())


def test_settings_of_each_source_are_part_of_the_preparations_digest(preparation: Preparation) -> None:
    first, second = written(preparation, "a", pairs(20)), written(preparation, "b", pairs(40)[20:])
    variants: list[dict[str, Any]] = [{}, {"splits": "TrainOnly"}, {"columns": Columns(label="good")}]
    digests = [preparation.run(first, second.model_copy(update=each)).preparation for each in variants]

    assert len({*digests, preparation.run(first).preparation}) == 4


def test_the_result_of_eight_large_sources_fits_into_a_termination_message() -> None:
    rows = {"train": 4_000_000, "validation": 500_000, "test": 500_000}
    found = SourceResult(version="a" * 32, revision="9" * 40, format="PromptCompletion", **rows)
    of_source = SourceDifference(uri="https://rows.example/" + "x" * 900, added=1, removed=1, changed=1)
    difference = Difference(previous=DIGEST, added=8, removed=8, changed=8, sources=(of_source,) * 8)
    prepared = PrepareResult(
        dataset=DIGEST,
        source=DIGEST,
        sources=(found,) * 8,
        preparation=DIGEST,
        format="PromptCompletion",
        splits=tuple(
            SplitRecord(name=name, rows=5_000_000, digest=DIGEST) for name in ("train", "validation", "test")
        ),
        statistics=DataStatistics(**dict.fromkeys(DataStatistics.model_fields, 5_000_000)),
        problems=("x" * 200,) * 10,
        warnings=("y" * 200,) * 10,
        report_uri="s3://artifacts/team/finetune/runs/" + "d" * 40 + "/prepare/report.html",
        difference=difference,
    )
    result = StageResult(
        stage="prepare",
        run="d" * 40,
        outcome="Succeeded",
        prepare=prepared,
        nonce="n" * 64,
        config_digest=DIGEST,
    )

    message = StageResult.parse(fit_message(result))

    assert message is not None
    assert message.prepare is not None
    assert message.prepare.sources == prepared.sources
    assert message.prepare.difference == difference.model_copy(update={"sources": ()})


def test_a_dataset_that_only_trains_has_no_held_out_rows_and_says_so(preparation: Preparation) -> None:
    result = preparation.run(written(preparation, "a", pairs(20), splits="TrainOnly"))

    assert [split.rows for split in result.splits] == [20, 0, 0]
    assert any("because every source has splits: TrainOnly" in warning for warning in result.warnings)
