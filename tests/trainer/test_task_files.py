# SPDX-License-Identifier: Apache-2.0
"""Files of tasks: what preflight refuses, with the file and the field, and what templates cannot do."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_trainer.contract.own_metrics import EvaluationTask
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.own_metrics import open_tasks
from tests.trainer.workbench import Workbench

ROWS: Final = tuple({"question": f"Is {number} even?", "gold": number % 2} for number in range(6))
FILES: Final = {"data_files": {"test": "rows.jsonl"}}
TASK: Final[Mapping[str, Any]] = {
    "task": "even",
    "dataset_path": "json",
    "dataset_kwargs": FILES,
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "gold",
}
TEXT: Final = {"output_type": "generate_until", "doc_to_target": "{{gold}}"}
INCLUDED: Final = "task: even\ninclude: other.yaml\n"
CODE: Final = "task: even\nprocess_docs: !function utils.process_docs\n"


def task_in(folder: Path, content: Mapping[str, Any] | str, rows: str | None = None) -> EvaluationTask:
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content))
    (folder / "even.yaml").write_text(text)
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines if rows is None else rows)
    return EvaluationTask(name="even", folder=str(folder), file="even.yaml")


def refusal(task: EvaluationTask) -> str:
    with pytest.raises(StageFailure) as caught:
        open_tasks([task])
    assert (caught.value.reason, caught.value.exit_code) == (
        FailureReason.INVALID_CONFIG,
        ExitCode.BAD_CONFIG,
    )
    return caught.value.message.removeprefix("evaluation.tasks: even: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CODE, "even.yaml: line 2: !function would execute code"),
        ("task: !!python/object/apply:os.getcwd []\n", "even.yaml: it is not YAML"),
        ("task: [\n", "even.yaml: it is not YAML"),
        ("- task\n", "even.yaml: it is not a YAML mapping"),
        (INCLUDED, "even.yaml: include: not supported, because it needs other files"),
        (
            {**TASK, "process_results": "x"},
            "process_results: not supported, because it needs code",
        ),
        ({**TASK, "dataset_path": "ai2_arc"}, "even.yaml: dataset_path: must be json"),
        ({**TASK, "dataset_name": "main"}, "even.yaml: dataset_name: "),
        (
            {**TASK, "dataset_kwargs": {"data_files": {"test": "https://host/rows.jsonl"}}},
            "even.yaml: dataset_kwargs.data_files.test: ",
        ),
        (
            {**TASK, "dataset_kwargs": {"data_files": {"test": "../rows.jsonl"}}},
            "even.yaml: dataset_kwargs.data_files.test: ",
        ),
        (
            {**TASK, "dataset_kwargs": {**TASK["dataset_kwargs"], "script": "x"}},
            "dataset_kwargs.script: unknown",
        ),
        ({**TASK, "colour": "red"}, "even.yaml: colour: unknown or not supported"),
        ({**TASK, "output_type": "loglikelihood_rolling"}, "even.yaml: output_type: "),
        ({**TASK, "metric_list": [{"metric": "f1"}]}, "even.yaml: metric_list: f1 of multiple_choice"),
        (
            {**TASK, "test_split": "all"},
            "test_split: dataset_kwargs.data_files has no file of all",
        ),
        ({**TASK, "test_split": None}, "even.yaml: test_split: name the split"),
        ({**TASK, "doc_to_choice": None}, "even.yaml: doc_to_choice: "),
        (
            {**TASK, **TEXT, "generation_kwargs": {"do_sample": True}},
            "even.yaml: generation_kwargs.do_sample: ",
        ),
        ({**TASK, "doc_to_text": "{{answer}}"}, "'answer' is undefined"),
        ({**TASK, "doc_to_text": "{{question.__class__.__mro__}}"}, "access to attribute '__class__'"),
        (
            {**TASK, "doc_to_target": "{{gold * 2}}"},
            "row 2: doc_to_target is 2, which is none of the 2",
        ),
        ({**TASK, "num_fewshot": 9}, "row 1: "),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_field(
    tmp_path: Path, content: Mapping[str, Any] | str, message: str
) -> None:
    assert message in refusal(task_in(tmp_path, content))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "rows.jsonl: it has no rows"),
        ("{}\n[]\n", "rows.jsonl: line 2 is not a JSON object"),
        ("{}\nrow\n", "rows.jsonl: line 2 is not JSON"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_by_line(tmp_path: Path, rows: str, message: str) -> None:
    assert message in refusal(task_in(tmp_path, TASK, rows))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    task = task_in(tmp_path, TASK)
    assert "the task has no metric f1; it has acc, acc_norm" in refusal(
        task.model_copy(update={"metric": "f1"})
    )
    assert "no filter strict" in refusal(task.model_copy(update={"metric": "acc,strict"}))
    assert "other.yaml: it cannot be read" in refusal(task.model_copy(update={"file": "other.yaml"}))


def test_compressed_rows_are_the_same_rows(tmp_path: Path) -> None:
    (plain,) = open_tasks([task_in(tmp_path, TASK)])
    compressed = {**TASK, "dataset_kwargs": {"data_files": {"test": "rows.jsonl.gz"}}}
    task = task_in(tmp_path, compressed)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))

    (found,) = open_tasks([task])

    assert found.source.rows == plain.source.rows
    assert [each.args for each in found.requests.all] == [each.args for each in plain.requests.all]
    (tmp_path / "rows.jsonl.gz").write_bytes(b"rows")
    assert "rows.jsonl.gz: it is not compressed by gzip" in refusal(task)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(bytes(33 * 1024 * 1024)))
    assert "bytes without compression" in refusal(task)


def test_preflight_records_the_files_and_refuses_before_the_model_is_read(tmp_path: Path) -> None:
    bench, folder = Workbench(tmp_path), tmp_path / "task"
    folder.mkdir()

    (source,) = bench.preflight(tasks=(task_in(folder, TASK).model_copy(update={"limit": 4}),)).tasks

    assert (source.name, source.rows) == ("even", 4)
    failure = bench.preflight_failure(tmp_path / "no-model", tasks=(task_in(folder, CODE),))
    assert "!function would execute code" in failure.message
