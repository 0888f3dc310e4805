# SPDX-License-Identifier: Apache-2.0
"""Rows that are longer than the max sequence length are left out, truncated, or a reason to fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.hyperparameters import OnLongRows
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import PreflightResult, StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.train.inputs import TrainingData
from tests.trainer.workbench import ROWS, RUN, Workbench, elsewhere

LONG = Row.pair("where?", "sales " * 100)
MANY = ROWS * 2


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def short(on_long_rows: OnLongRows | None = None) -> dict[str, Any]:
    return {"max_sequence_length": 64, "on_long_rows": on_long_rows}


def test_a_few_long_rows_are_left_out_and_counted(bench: Workbench) -> None:
    dataset = bench.dataset((*MANY, LONG), (*ROWS, LONG), (LONG,))

    result = bench.preflight(dataset=dataset, hyperparameters=short())

    report = json.loads((bench.store.run_folder(RUN, "preflight").path / "tokens.json").read_text())
    assert (report["droppedRows"], report["cutRows"]) == (2, 1)
    assert result.hyperparameters.on_long_rows == "Drop"
    assert (result.train_rows, result.dropped_rows) == (len(MANY), 2)
    assert result.dropped_percent == round(100 * 2 / (len(MANY) + len(ROWS) + 2), 2)
    assert result.train_tokens == bench.preflight(dataset=bench.dataset(MANY)).train_tokens
    dropped, truncated = result.warnings
    assert dropped.startswith("2 rows of training and validation (5.3%) have more than 64 tokens")
    assert f"(train row {len(MANY) + 1}, validation row {len(ROWS) + 1})" in dropped
    assert (
        f"set hyperparameters.maxSequenceLength to {result.longest_row_tokens}, or dataset.onLongRows"
        in dropped
    )
    assert truncated.startswith("1 row of the test split has more than 64 tokens")
    assert result.truncated_rows == 1


def test_many_long_rows_fail_unless_the_user_drops_them(bench: Workbench) -> None:
    dataset = bench.dataset((*ROWS, LONG, LONG))

    failure = bench.preflight_failure(dataset=dataset, hyperparameters=short())

    assert (failure.reason, failure.exit_code) == (FailureReason.SEQUENCE_TOO_LONG, ExitCode.BAD_DATA)
    assert failure.message.startswith("2 rows of training and validation (14.3%) are longer than")
    longest = bench.preflight(dataset=dataset).longest_row_tokens
    assert f"set hyperparameters.maxSequenceLength to {longest} to use all rows" in failure.message
    assert bench.preflight(dataset=dataset, hyperparameters=short("Drop")).dropped_rows == 2


def test_a_length_that_holds_most_rows_is_named(bench: Workbench) -> None:
    longer = Row.pair("where?", "sales " * 60)

    failure = bench.preflight_failure(
        dataset=bench.dataset((*MANY, LONG, *[longer] * 4)), hyperparameters=short()
    )

    most = bench.preflight(dataset=bench.dataset((*MANY, longer))).longest_row_tokens
    assert f"or to {most} to use 90% of them" in failure.message


def test_one_long_row_fails_where_the_user_allows_none(bench: Workbench) -> None:
    failure = bench.preflight_failure(dataset=bench.dataset((*MANY, LONG)), hyperparameters=short("Fail"))

    assert failure.reason == FailureReason.SEQUENCE_TOO_LONG
    assert "1 row of training and validation (4.0%)" in failure.message


def test_a_row_beyond_the_models_context_can_only_be_left_out_or_changed(bench: Workbench) -> None:
    endless = Row.pair("where?", "sales " * 600)

    result = bench.preflight(dataset=bench.dataset((*MANY, endless)))
    failure = bench.preflight_failure(dataset=bench.dataset((*ROWS, endless, endless)))

    assert (result.dropped_rows, result.hyperparameters.max_sequence_length) == (1, 512)
    assert "the context of the base model has only 512 tokens: shorten the rows" in failure.message


def test_a_split_never_loses_all_rows(bench: Workbench) -> None:
    failure = bench.preflight_failure(dataset=bench.dataset(MANY, (LONG,)), hyperparameters=short("Drop"))

    assert failure.reason == FailureReason.SEQUENCE_TOO_LONG
    assert "validation row 1" in failure.message


@pytest.mark.parametrize("on_long_rows", [None, "Drop", "Fail", "Truncate"])
def test_without_long_rows_the_run_records_nothing_about_them(
    bench: Workbench, on_long_rows: OnLongRows | None
) -> None:
    result = bench.preflight(hyperparameters={"on_long_rows": on_long_rows})

    assert result.hyperparameters.on_long_rows is None
    assert "onLongRows" not in result.hyperparameters.to_json()
    assert result.warnings == ()


@pytest.mark.parametrize("is_tokenized", [True, False], ids=["tokenized", "encoding"])
def test_a_run_trains_as_if_the_long_rows_were_not_there(bench: Workbench, is_tokenized: bool) -> None:
    method = Method(lora=LoRA(r=4, alpha=8, dropout=0.1))
    rows = (*ROWS[:5], LONG, *ROWS[5:])
    dataset = bench.dataset(rows, (LONG, *ROWS[:4]))
    result = bench.preflight(dataset=dataset, method=method, hyperparameters=short("Drop"))
    if is_tokenized:
        keep(bench, result)
    config = bench.train_config(result.base_model, dataset, method=method, on_long_rows="Drop")
    other = elsewhere(bench, "other")
    expected = other.train(other.train_config(dataset=other.dataset(ROWS, ROWS[:4]), method=method))

    assert bench.train(config) == expected
    data = TrainingData.load(config, config.hyperparameters, bench.context())
    assert list(data.validation_numbers) == [2, 3, 4, 5]


def keep(bench: Workbench, result: PreflightResult) -> None:
    bench.store.write_result(StageResult(stage="preflight", run=RUN, outcome="Succeeded", preflight=result))
