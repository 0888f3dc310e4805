# SPDX-License-Identifier: Apache-2.0
"""Evaluations that are stopped, killed, or hang, and the next process that continues them."""

import json
import os
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import LiveModel, PromptedModel
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.evaluate import estimates, measured_model, measurement_log, runner
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measured_model import GeneratedAnswer, MeasuredModel
from finetune_trainer.evaluate.measurement_log import FILE, PredictionLog, RowPrediction, subject_digest
from finetune_trainer.model.loading import load_placed
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import Preempted, StageFailure
from tests.trainer.gpuwrapping import as_a_gpu_trains, tiny_in_bfloat16
from tests.trainer.processes import run
from tests.trainer.workbench import OWNER, ROWS, Sheet, Workbench

TEST_ROWS = (Row.pair("Where is the order that I paid for three weeks ago?", "billing"), *ROWS[:6])
SETTINGS: dict[str, Any] = {"batch_size": 2, "metrics": ("exact_match", "loss", "f1_token")}


@dataclass(frozen=True)
class Case:
    """A checkpoint to evaluate, and the result of an evaluation without interruption."""

    bench: Workbench
    config: EvaluateConfig
    expected: EvaluateResult

    def new_run(self, name: str, **settings: Any) -> EvaluateConfig:
        return self.config.model_copy(update={"run": name, **settings})

    def lines(self, config: EvaluateConfig) -> list[dict[str, Any]]:
        content = self.bench.store.run_folder(config.run, "evaluate").read(FILE)
        assert content is not None
        return [json.loads(line) for line in content.splitlines()]

    def predictions(self, config: EvaluateConfig) -> list[dict[str, Any]]:
        """The lines of the rows, without the time that each took."""
        return [{**line, "seconds": None} for line in self.lines(config)[1:]]


def make_case(root: Path, method: Method, model: Path | None = None) -> Case:
    bench = Workbench(root)
    base, dataset = bench.model(model), bench.dataset(ROWS, (), TEST_ROWS)
    (checkpoint,) = bench.train(bench.train_config(base, dataset, method=method, epochs=4)).checkpoints
    config = bench.evaluate_config(base, dataset, checkpoint, **SETTINGS)
    return Case(bench, config, bench.run_evaluate(config))


@pytest.fixture(scope="module", params=["adapter", "full model"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    method = Method(lora=LoRA(r=4, alpha=8)) if request.param == "adapter" else Method(type="Full")
    return make_case(tmp_path_factory.mktemp("evaluate"), method)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("adapter"), Method(lora=LoRA(r=4, alpha=8)))


@dataclass(frozen=True)
class AtBatch:
    """Does something to a trainer process before batch number `batch`, and saves every batch before it."""

    batch: int
    action: Callable[[], None]
    errors: Path | None = None

    def __call__(self) -> None:
        if self.errors is not None:
            os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT), 2)
        vars(measurement_log)["FLUSH_SECONDS"] = 0
        left, generate = [self.batch], MeasuredModel.generate

        def counted(model: MeasuredModel, examples: list[Example]) -> list[GeneratedAnswer]:
            left[0] -= 1
            if left[0] == 0:
                self.action()
            return generate(model, examples)

        vars(measured_model)["MeasuredModel"].generate = counted


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def block() -> None:
    threading.Event().wait()


@dataclass
class Generated:
    """Records what is generated."""

    batches: list[list[int]] = field(default_factory=list)
    """Numbers of the rows of each batch."""
    stops: dict[int, Sheet] = field(default_factory=dict)
    """The sheet to stop in the batch of this number."""

    def stopped(self, case: Case, config: EvaluateConfig, batch: int) -> None:
        """Evaluate until a batch of this number is measured."""
        sheet = Sheet()
        self.stops = {len(self.batches) + batch: sheet}
        with pytest.raises(Preempted):
            case.bench.run_evaluate(config, sheet)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Generated:
    """What is generated from now on."""
    recorded, generate = Generated(), MeasuredModel.generate

    def record(model: MeasuredModel, examples: list[Example]) -> list[GeneratedAnswer]:
        recorded.batches.append([example.row for example in examples])
        if sheet := recorded.stops.get(len(recorded.batches)):
            sheet.stop.set()
        return generate(model, examples)

    monkeypatch.setattr(MeasuredModel, "generate", record)
    return recorded


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 7])
def test_a_stopped_evaluation_continues_and_gives_exactly_the_same_scores(
    case: Case, generated: Generated, batch: int
) -> None:
    """Each of the two models has four batches."""
    config, sheet = case.new_run(f"stopped-{batch}"), Sheet()
    generated.stopped(case, config, batch)

    assert case.bench.run_evaluate(config, sheet).scores == case.expected.scores
    assert sorted(row for rows in generated.batches for row in rows) == sorted([*range(1, 8)] * 2)
    assert sheet.seen[0].step >= 2 * batch - 1
    assert sheet.seen[-1].step == sheet.seen[-1].total_steps == 14
    assert case.predictions(config) == case.predictions(case.config)


def test_a_killed_evaluation_continues_after_the_rows_that_were_saved(
    adapter: Case, generated: Generated
) -> None:
    config = adapter.new_run("killed")

    assert run(config, arm=AtBatch(3, kill)).code == -signal.SIGKILL

    assert adapter.bench.run_evaluate(config).scores == adapter.expected.scores
    assert len(generated.batches) == 8 - 2


@pytest.fixture(scope="module")
def compared(adapter: Case) -> Case:
    """The adapter with all subjects: four batches each, and the champion is a whole model."""
    bench, config = adapter.bench, adapter.config
    training = bench.train_config(config.base_model, config.dataset, method=Method(type="Full"), seed=11)
    (champion,) = bench.train(training.model_copy(update={"run": "champion"})).checkpoints
    config = adapter.new_run(
        "compared",
        subjects=("Tuned", "Base", "Prompted", "Live"),
        prompted=PromptedModel(system_prompt="Name the team.", examples=2),
        live=LiveModel(
            name="before", digest=champion.digest, type=champion.type, base_model=config.base_model
        ),
    )
    return Case(bench, config, bench.run_evaluate(config))


@pytest.mark.parametrize(
    "batch", [pytest.param(batch, marks=() if batch == 10 else pytest.mark.full) for batch in range(1, 17, 3)]
)
def test_all_subjects_continue_after_a_signal_with_the_same_predictions(
    compared: Case, generated: Generated, batch: int
) -> None:
    config = compared.new_run(f"signal-{batch}")
    generated.stopped(compared, config, batch)

    result = compared.bench.run_evaluate(config)

    assert result.scores == compared.expected.scores
    assert len(generated.batches) == 16
    assert compared.predictions(config) == compared.predictions(compared.config)


@pytest.mark.parametrize(
    ("action", "batch"),
    [
        pytest.param(action, batch, marks=() if (action, batch) == (kill, 14) else pytest.mark.full)
        for action in (kill, terminate)
        for batch in (2, 6, 10, 14)
    ],
)
def test_all_subjects_continue_after_a_process_ended_with_the_same_predictions(
    compared: Case, generated: Generated, action: Callable[[], None], batch: int
) -> None:
    config = compared.new_run(f"{action.__name__}-{batch}")

    assert run(config, arm=AtBatch(batch, action)).code in (-signal.SIGKILL, ExitCode.PREEMPTED_SAVED)

    assert compared.bench.run_evaluate(config).scores == compared.expected.scores
    assert len(generated.batches) == 16 - (batch - 1)
    assert compared.predictions(config) == compared.predictions(compared.config)


def test_a_pod_that_gets_a_signal_saves_its_rows_and_does_not_count_as_failed(
    adapter: Case, generated: Generated
) -> None:
    config = adapter.new_run("terminated")

    ended = run(config, arm=AtBatch(4, terminate))

    assert ended.code == ExitCode.PREEMPTED_SAVED, ended.logs
    assert adapter.bench.run_evaluate(config).scores == adapter.expected.scores
    assert len(generated.batches) == 8 - 3


def test_an_evaluation_that_hangs_ends_and_the_next_pod_continues(
    adapter: Case, generated: Generated
) -> None:
    config, errors = adapter.new_run("hangs"), adapter.bench.root / "stderr"

    ended = run(config.model_copy(update={"step_timeout_seconds": 3}), arm=AtBatch(3, block, errors))

    assert ended.code == ExitCode.INTERNAL, ended.logs
    result = ended.result
    assert (result.stage, result.outcome, result.reason) == ("evaluate", "Failed", FailureReason.STEP_TIMEOUT)
    assert result.message.startswith("the evaluation hangs after 4 of 14 rows of all models: ")
    assert "within 3 seconds" in result.message
    assert f"from the rows in {adapter.bench.store_config.uri}/runs/hangs/evaluate" in result.message
    assert "compute.stepTimeoutSeconds" in result.message
    assert "in block\n" in errors.read_text()


def test_a_pod_that_is_stopped_between_figures_measures_no_row_again(
    adapter: Case, generated: Generated
) -> None:
    config = adapter.new_run("figures")

    with pytest.raises(Preempted):
        adapter.bench.run_evaluate(config, Sheet(stop_at=frozenset({14})))

    assert adapter.bench.run_evaluate(config).scores == adapter.expected.scores
    assert len(generated.batches) == 8


def block_figures() -> None:
    vars(estimates)["Estimates"]._make = lambda *_: block()


def test_an_evaluation_that_hangs_in_a_figure_ends(adapter: Case) -> None:
    config = adapter.new_run("hangs in a figure", step_timeout_seconds=3)

    ended = run(config, arm=block_figures)

    assert ended.result.reason == FailureReason.STEP_TIMEOUT, ended.logs
    assert ended.result.message.startswith("the evaluation hangs after 14 of 14 rows of all models: ")


def test_the_rows_of_another_config_or_a_damaged_file_are_measured_again(
    adapter: Case, generated: Generated
) -> None:
    config = adapter.new_run("changed")
    generated.stopped(adapter, config, 2)
    other = config.model_copy(update={"subjects": ("Tuned",), "seed": 1})
    generated.batches.clear()
    generated.stops.clear()

    assert adapter.bench.run_evaluate(other).scores == adapter.expected.scores[:3]
    assert len(generated.batches) == 4

    folder = adapter.bench.store.run_folder(config.run, "evaluate")
    folder.write(FILE, b"{\n" + (folder.read(FILE) or b""))
    assert adapter.bench.run_evaluate(other).scores == adapter.expected.scores[:3]
    assert len(generated.batches) == 8


def test_a_complete_evaluation_whose_result_is_lost_loads_no_model(
    adapter: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "load_placed", None)

    assert adapter.bench.run_evaluate(adapter.config).scores == adapter.expected.scores


def test_every_row_of_every_model_has_a_line_with_its_answer_and_its_values(adapter: Case) -> None:
    header, *lines = adapter.lines(adapter.config)

    digests = {subject: subject_digest(adapter.config, subject) for subject in adapter.config.subjects}
    assert header == {"format": 2, "subjects": digests, "batchSize": 2}
    assert [line["subject"] for line in lines] == ["Tuned"] * 7 + ["Base"] * 7
    assert sorted(line["row"] for line in lines[:7]) == [*range(1, 8)]
    for line in lines:
        assert line["metrics"].keys() == {"exact_match", "loss", "f1_token"}
        assert line["finishReason"] in ("stop", "length")
        assert isinstance(line["text"], str)
        assert isinstance(line["tokens"], int)
        assert line["seconds"] > 0
    matches = [line["metrics"]["exact_match"] for line in lines[:7]]
    assert sum(matches) / 7 == adapter.expected.scores[0].value


@pytest.mark.parametrize("renewed", [False, True], ids=["complete", "renewed"])
def test_parts_that_are_left_beside_the_complete_file_are_read_once_and_removed(
    tmp_path: Path, renewed: bool
) -> None:
    """A process was killed between writing the file and removing the parts; then another champion came."""
    folder, config = Workbench(tmp_path).store.run_folder("left", "evaluate"), live_config()
    rows = [
        RowPrediction(subject=subject, row=row, text="billing", metrics={"exact_match": 1})
        for subject in config.subjects
        for row in (1, 2)
    ]
    log = PredictionLog(folder, config)
    log.add(rows[:3])
    with log.saved():
        log.add(rows[3:])
    part = folder.read(measurement_log._part(1))
    assert part is not None
    log.finish()
    folder.write(measurement_log._part(1), part)

    again = PredictionLog(folder, live_config("b") if renewed else config)
    for subject in config.subjects if renewed else ():
        again.add([row for row in rows if row.subject == subject and row.row not in again.of(subject)])
    again.finish()

    _, *lines = (folder.read(FILE) or b"").splitlines()
    found = [(line["subject"], line["row"]) for line in map(json.loads, lines)]
    assert sorted(found) == sorted((row.subject, row.row) for row in rows)
    assert folder.read(measurement_log._part(1)) is None


def live_config(champion: str = "a") -> EvaluateConfig:
    digest = "sha256:" + "0" * 64
    return EvaluateConfig(
        owner=OWNER,
        run="left",
        store=StoreConfig(uri="pvc://artifacts", path=""),
        base_model=digest,
        dataset=digest,
        checkpoint=digest,
        metrics=("exact_match",),
        subjects=("Tuned", "Live"),
        live=LiveModel(name="before", digest="sha256:" + champion * 64, type="Adapter", base_model=digest),
    )


def test_the_longest_rows_are_first(adapter: Case, generated: Generated) -> None:
    adapter.bench.run_evaluate(adapter.new_run("ordered"))

    assert generated.batches[0][0] == generated.batches[4][0] == 1


def test_one_model_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, Method(type="Full"))
    loaded: list[weakref.ref[Any]] = []

    def alone(*arguments: Any, **settings: Any) -> Any:
        assert all(reference() is None for reference in loaded)
        model = load_placed(*arguments, **settings)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(runner, "load_placed", alone)

    assert case.bench.run_evaluate(case.new_run("alone")).scores == case.expected.scores
    assert len(loaded) == 2


def test_a_store_that_fails_for_a_while_loses_no_rows(
    adapter: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measurement_log, "FLUSH_SECONDS", 0)
    config = adapter.new_run("outage")
    folder = adapter.bench.store.run_folder(config.run, "evaluate")
    write, down = folder.write, [True]

    def unreliable(name: str, content: bytes) -> None:
        if down[0]:
            raise StageFailure(FailureReason.STORE_UNAVAILABLE, "the volume is away")
        write(name, content)

    monkeypatch.setattr(folder, "write", unreliable)
    first, second = (RowPrediction(subject="Tuned", row=row, metrics={"loss": 1 / 3}) for row in (1, 2))
    log = PredictionLog(folder, config)
    log.add([first])
    down[0] = False
    log.add([second])

    assert "measured rows are saved later: the volume is away" in caplog.text
    assert PredictionLog(folder, config).of("Tuned") == {1: first, 2: second}


def test_evaluation_as_on_a_gpu_continues_exactly(tmp_path: Path, generated: Generated) -> None:
    with as_a_gpu_trains():
        case = make_case(tmp_path, Method(lora=LoRA(r=4, alpha=8)), tiny_in_bfloat16())
        config = case.new_run("as on a GPU")
        generated.stopped(case, config, 2)

        assert case.bench.run_evaluate(config).scores == case.expected.scores
    scores = {(score.metric, score.subject): score.value for score in case.expected.scores}
    assert scores["loss", "Tuned"] < scores["loss", "Base"]
