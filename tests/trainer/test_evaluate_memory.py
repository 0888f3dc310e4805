# SPDX-License-Identifier: Apache-2.0
"""Evaluations whose batches do not fit into memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.evaluate import runner
from finetune_trainer.evaluate.measurement_log import FILE
from finetune_trainer.model.loading import load_placed
from finetune_trainer.runtime.termination import Preempted, StageFailure
from tests.trainer.test_train_memory import allocation_fails, gpu_is_full, python_fails
from tests.trainer.workbench import ROWS, Sheet, Workbench


class Evaluated:
    """A checkpoint and its test rows."""

    def __init__(self, root: Path) -> None:
        self.bench = Workbench(root)
        base, dataset = self.bench.model(), self.bench.dataset(ROWS, (), ROWS[:7])
        config = self.bench.train_config(base, dataset, method=Method(lora=LoRA(r=4, alpha=8)))
        (checkpoint,) = self.bench.train(config).checkpoints
        self.config = self.bench.evaluate_config(base, dataset, checkpoint)

    def new_run(self, name: str, **settings: Any) -> EvaluateConfig:
        return self.config.model_copy(update={"run": name, **settings})

    def lines(self, config: EvaluateConfig) -> list[dict[str, Any]]:
        """Evaluate. Returns the predictions."""
        self.bench.run_evaluate(config)
        content = self.bench.store.run_folder(config.run, "evaluate").read(FILE) or b""
        return [json.loads(line) for line in content.splitlines()[1:]]

    def batch_size(self, config: EvaluateConfig) -> int:
        content = self.bench.store.run_folder(config.run, "evaluate").read(FILE) or b""
        return int(json.loads(content.splitlines()[0])["batchSize"])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return Evaluated(tmp_path_factory.mktemp("memory"))


@dataclass
class Room:
    """Memory for `rows` per batch. With `stops`, the evaluation is stopped in its first batch that fits."""

    rows: int
    fail: Callable[[], None] = gpu_is_full
    sheet: Sheet = field(default_factory=Sheet)
    stops: bool = False
    tried: list[int] = field(default_factory=list)
    """Number of rows of each pass."""

    def before(self, _: torch.nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        rows = len(inputs["input_ids"])
        self.tried.append(rows)
        if rows > self.rows:
            self.fail()
        if self.stops:
            self.sheet.stop.set()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Room], Room]:
    """Compute models in this memory from now on."""

    def use(room: Room) -> Room:
        def loaded(*arguments: Any, **settings: Any) -> Any:
            model = load_placed(*arguments, **settings)
            model.register_forward_pre_hook(room.before, with_kwargs=True)
            return model

        monkeypatch.setattr(runner, "load_placed", loaded)
        return room

    return use


On = Callable[[Room], Room]


@pytest.mark.parametrize("fail", [gpu_is_full, allocation_fails, python_fails])
def test_batches_that_do_not_fit_are_halved_for_the_rest_of_the_evaluation(
    evaluated: Evaluated, on: On, fail: Callable[[], None]
) -> None:
    expected = evaluated.bench.run_evaluate(evaluated.new_run(f"small {fail.__name__}", batch_size=3))
    room = on(Room(rows=3, fail=fail))
    config = evaluated.new_run(fail.__name__, batch_size=8)

    assert evaluated.bench.run_evaluate(config).scores == expected.scores
    assert [rows for rows in room.tried if rows > 3] == [7]
    assert evaluated.batch_size(config) == 3


def test_the_next_pod_does_not_try_again_what_did_not_fit(evaluated: Evaluated, on: On) -> None:
    config = evaluated.new_run("again", batch_size=4)
    expected = evaluated.bench.run_evaluate(evaluated.new_run("small", batch_size=2))
    room = on(Room(rows=2, stops=True))
    with pytest.raises(Preempted):
        evaluated.bench.run_evaluate(config, room.sheet)
    room.tried, room.stops = [], False

    assert evaluated.bench.run_evaluate(config).scores == expected.scores
    assert max(room.tried) == 2


def test_a_row_that_does_not_fit_alone_ends_it_with_figures_and_advice(evaluated: Evaluated, on: On) -> None:
    on(Room(rows=0))

    with pytest.raises(StageFailure) as caught:
        evaluated.bench.run_evaluate(evaluated.new_run("none"))

    failure = caught.value
    assert (failure.reason, failure.exit_code) == (FailureReason.OUT_OF_MEMORY, ExitCode.BAD_CONFIG)
    assert failure.message.startswith("evaluating test rows with the model Tuned ran out of memory on cpu")
    assert "GiB in use (CUDA out of memory. Tried to allocate 2.00 GiB.); test row " in failure.message
    assert "alone needs" in failure.message
    assert "spec.evaluation.profile" in failure.message


def test_a_model_that_does_not_fit_ends_it_with_figures_and_advice(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "load_placed", lambda *_, **__: gpu_is_full())

    with pytest.raises(StageFailure, match="loading the model ran out of memory on cpu") as caught:
        evaluated.bench.run_evaluate(evaluated.new_run("no room"))

    assert caught.value.reason == FailureReason.OUT_OF_MEMORY
    assert "spec.evaluation.profile" in caught.value.message
