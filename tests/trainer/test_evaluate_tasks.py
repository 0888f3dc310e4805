# SPDX-License-Identifier: Apache-2.0
"""General ability: tasks of lm-evaluation-harness, compared with the library's own command."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import datasets
import pytest
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import GateBound, LiveModel
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.own_metrics import EvaluationTask
from finetune_trainer.contract.vocabulary import FailureReason, Subject
from finetune_trainer.evaluate.measured_model import MeasuredModel
from finetune_trainer.evaluate.measurement_log import TaskLog, Values
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.tokens.encoding import EncodedRow
from tests.trainer.workbench import ROWS, TEAMS, Sheet, Workbench
from tools.models import tiny

QUESTIONS: Final = tuple(
    {
        "question": f"{row.messages[0].content} It was number {number}.",
        "team": row.output,
        "gold": TEAMS.index(row.output),
    }
    for number, row in enumerate(ROWS * 2)
)
TASK: Final[Mapping[str, Any]] = {
    "task": "teams",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl", "train": "shots.jsonl"}},
    "test_split": "test",
    "training_split": "train",
    "fewshot_split": "train",
    "num_fewshot": 2,
    "metadata": {"version": 1.5},
}
CHOICE: Final = {
    **TASK,
    "output_type": "multiple_choice",
    "description": "Name the team.\n\n",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": list(TEAMS),
    "doc_to_target": "gold",
    "metric_list": [
        {"metric": "acc"},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
TEXT: Final = {
    **TASK,
    "task": "words",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{team}}",
    "target_delimiter": " -> ",
    "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", "ignore_case": True}],
    "filter_list": [
        {
            "name": "first",
            "filter": [{"function": "regex", "regex_pattern": "(\\w)"}, {"function": "take_first"}],
        },
        {"name": "whole", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
    ],
}


def write_task(folder: Path, content: Mapping[str, Any], **options: Any) -> EvaluationTask:
    """Write the files of a task as a ConfigMap has them."""
    folder.mkdir(exist_ok=True)
    (folder / f"{content['task']}.yaml").write_text(yaml.safe_dump(dict(content)))
    for name, rows in (("rows.jsonl", QUESTIONS), ("shots.jsonl", QUESTIONS[::-1])):
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return EvaluationTask(name=content["task"], folder=str(folder), file=f"{content['task']}.yaml", **options)


class Case:
    """A Checkpoint that has learned the teams, and tasks about them."""

    def __init__(self, root: Path) -> None:
        self.bench = Workbench(root)
        self.base, self.dataset = self.bench.model(), self.bench.dataset(ROWS, (), ROWS[:4])
        config = self.bench.train_config(
            self.base, self.dataset, method=Method(lora=LoRA(r=4, alpha=8)), epochs=6
        )
        (self.checkpoint,) = self.bench.train(config).checkpoints
        self.folder = root / "tasks"
        self.tasks = (
            write_task(self.folder, CHOICE),
            write_task(self.folder, TEXT, metric="exact_match,whole"),
        )

    def config(self, run: str, **settings: Any) -> EvaluateConfig:
        config = self.bench.evaluate_config(
            self.base,
            self.dataset,
            self.checkpoint,
            **{"tasks": self.tasks, "metrics": ("loss",), **settings},
        )
        return config.model_copy(update={"run": run})

    def values(self, run: str, task: str, subject: str) -> list[float]:
        content = self.bench.store.run_folder(run, "evaluate").read(f"task-{task}-{subject.lower()}.json")
        assert content is not None
        return list(json.loads(content)["values"])

    def report(self, run: str) -> dict[str, Any]:
        content = self.bench.store.run_folder(run, "evaluate").read("evaluation.json")
        assert content is not None
        return dict(json.loads(content))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def by_the_library(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, str], list[float]]:
    """The values of the library's command and its own model class, by task, metric and subject."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(case.folder)

    def values(task: str, metric: str, subject: str) -> list[float]:
        adapter = str(case.bench.checkpoint(case.checkpoint)) if subject == "Tuned" else None
        lm = HFLM(pretrained=str(tiny()), peft=adapter, device="cpu", dtype="float32", batch_size=3)
        manager = TaskManager(include_path=str(case.folder), include_defaults=False)
        found = simple_evaluate(
            model=lm, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0
        )
        name, _, pipeline = metric.partition(",")
        samples = [each for each in found["samples"][task] if not pipeline or each["filter"] == pipeline]
        return [float(each[name]) for each in sorted(samples, key=lambda each: each["doc_id"])]

    return values


@pytest.mark.parametrize("subject", ["Tuned", "Base"])
@pytest.mark.parametrize(("task", "metric"), [("teams", "acc"), ("words", "exact_match,whole")])
def test_values_equal_those_of_the_library(
    case: Case, by_the_library: Callable[[str, str, str], list[float]], task: str, metric: str, subject: str
) -> None:
    result = case.bench.run_evaluate(case.config("whole"))

    expected = by_the_library(task, metric, subject)
    assert case.values("whole", task, subject) == expected
    (score,) = (each for each in result.scores if (each.metric, each.subject) == (f"task/{task}", subject))
    assert score.value == pytest.approx(sum(expected) / len(QUESTIONS))
    assert score.rows == len(QUESTIONS)
    assert score.low is not None


def test_a_gate_is_decided_by_pairs_of_rows_and_the_page_says_what_was_measured(case: Case) -> None:
    gates = (GateBound(metric="task/teams", min_gain=-0.5, over="Base", confidence=0.95),)
    tasks = (case.tasks[0].model_copy(update={"limit": 20, "num_fewshot": 0, "metric": "acc_norm"}),)

    result = case.bench.run_evaluate(case.config("gated", gates=gates, tasks=tasks))

    tuned, base = (case.values("gated", "teams", subject) for subject in ("Tuned", "Base"))
    (evidence,) = result.evidence
    assert evidence.rows == 20
    assert evidence.gain == pytest.approx((sum(tuned) - sum(base)) / 20)
    assert evidence.gain is not None
    assert evidence.gain_low is not None
    assert evidence.gain_low < evidence.gain
    report = case.report("gated")
    (task,) = report["tasks"]
    assert task.pop("digest").startswith("sha256:")
    assert task == {
        "name": "teams",
        "task": "teams",
        "version": "1.5",
        "metric": "acc_norm",
        "numFewshot": 0,
        "rows": 20,
    }
    assert {score["subject"] for score in report["scores"] if score["metric"] == "task/teams"} == {
        "Tuned",
        "Base",
    }
    page = case.bench.store.run_folder("gated", "evaluate").read("evaluation.html")
    assert page is not None
    assert b"task/teams" in page


def test_live_does_the_tasks_and_prompted_does_not(case: Case) -> None:
    live = LiveModel(
        name="before", digest=case.checkpoint.digest, type=case.checkpoint.type, base_model=case.base
    )
    subjects = ("Tuned", "Base", "Prompted", "Live")

    result = case.bench.run_evaluate(case.config("four", subjects=subjects, live=live, tasks=case.tasks[:1]))

    scores = {each.subject: each.value for each in result.scores if each.metric == "task/teams"}
    assert set(scores) == {"Tuned", "Base", "Live"}
    assert scores["Live"] == scores["Tuned"]


def test_finished_tasks_are_not_repeated(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    config = case.config("resumed", batch_size=8)
    expected = case.bench.run_evaluate(case.config("straight", batch_size=8))
    sheet, add = Sheet(), TaskLog.add

    def stopping(log: TaskLog, wanted: EvaluationTask, subject: Subject, values: Values) -> None:
        add(log, wanted, subject, values)
        sheet.stop.set()

    monkeypatch.setattr(TaskLog, "add", stopping)
    with pytest.raises(Preempted):
        case.bench.run_evaluate(config, sheet)
    done = case.values("resumed", "teams", "Tuned")
    assert len(done) == 24

    monkeypatch.setattr(TaskLog, "add", add)
    scored: list[int] = []
    losses = MeasuredModel.losses

    def counted(model: MeasuredModel, rows: Sequence[EncodedRow]) -> list[tuple[float, int]]:
        scored.append(len(rows))
        return losses(model, rows)

    monkeypatch.setattr(MeasuredModel, "losses", counted)
    resumed = case.bench.run_evaluate(config)

    assert resumed.scores == expected.scores
    assert sum(scored) == 4 + 4 * 24, "Base does its rows and its task, and Tuned nothing again"


def test_files_that_have_changed_end_the_stage(case: Case) -> None:
    changed = case.tasks[0].model_copy(update={"digest": f"sha256:{'0' * 64}"})
    with pytest.raises(StageFailure, match="its files have changed since the run started") as caught:
        case.bench.run_evaluate(case.config("changed", tasks=(changed,)))
    assert caught.value.reason == FailureReason.INVALID_CONFIG


@pytest.mark.parametrize("task", [0, 1])
def test_a_model_that_overflows_has_no_score(case: Case, monkeypatch: pytest.MonkeyPatch, task: int) -> None:
    monkeypatch.setattr(MeasuredModel, "losses", lambda _, rows: [(math.nan, 1) for _ in rows])
    monkeypatch.setattr(MeasuredModel, "complete", lambda _, requests: [None for _ in requests])
    config = case.config(f"overflow-{task}", tasks=case.tasks[task : task + 1], metrics=("exact_match",))
    with pytest.raises(StageFailure, match="its logits are not finite") as caught:
        case.bench.run_evaluate(config)
    assert caught.value.reason == FailureReason.LOSS_NOT_FINITE
