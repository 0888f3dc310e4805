# SPDX-License-Identifier: Apache-2.0
"""A hanging training process ends, and the next one resumes."""

import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.stage.context import StepWatchdog
from finetune_trainer.train import model_setup, session
from finetune_trainer.train.model_setup import Trainable
from tests.trainer.processes import run
from tests.trainer.workbench import ROWS, Sheet, Undisturbed, Workbench


@dataclass(frozen=True)
class Blocks:
    """Blocks a trainer process, `loading` its model or in its `forward` pass."""

    where: str
    errors: Path
    """The file for its standard error."""

    def __call__(self) -> None:
        os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT), 2)
        vars(session)["trainable_model"] = self.load

    def load(self, *arguments: Any) -> Trainable:
        if self.where == "loading":
            blocked_here()
        model = model_setup.trainable_model(*arguments)
        model.register_forward_pre_hook(blocked_here)
        return model


def blocked_here(*_: object) -> None:
    threading.Event().wait()


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.mark.parametrize("where", ["loading", "forward"])
def test_a_process_that_hangs_ends_and_the_next_one_goes_on(
    bench: Workbench, undisturbed: Undisturbed, where: str
) -> None:
    config, errors = bench.train_config(), bench.root / "stderr"
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({2})))
    hasty = config.model_copy(update={"step_timeout_seconds": 1})

    ended = run(hasty, arm=Blocks(where, errors))

    assert ended.code == ExitCode.INTERNAL, ended.logs
    result = ended.result
    assert (result.stage, result.run, result.outcome) == ("train", config.run, "Failed")
    assert result.reason == FailureReason.STEP_TIMEOUT
    assert result.message.startswith("step 3 hangs: ")
    assert "within 1 seconds" in result.message
    assert f"resumes from step 2 in {bench.store_config.uri}" in result.message
    assert "raise compute.stepTimeoutSeconds" in result.message
    stacks = errors.read_text()
    assert "in load\n" in stacks or "in blocked_here\n" in stacks
    assert bench.store.read_result(config.run, "train") is None
    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": 2})


def test_every_batch_validation_batch_and_save_is_a_sign_of_life(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []

    class Recorded(StepWatchdog):
        @override
        def feed(self, step: int) -> None:
            fed.append(step)
            super().feed(step)

    monkeypatch.setattr(session, "StepWatchdog", Recorded)

    bench.train(bench.train_config(dataset=bench.dataset(ROWS, ROWS[:5]), save_every_steps=2, epochs=1))

    batch, step, save, validation_batch, best = 1, 1, 1, 1, 1
    assert fed == sorted(fed)
    assert Counter(fed) == {
        0: 2 + batch,  # at the start of the watchdog, and of training
        1: step + batch,
        2: step + save + batch,
        3: step + 3 * validation_batch + best + save,
    }


def test_a_run_without_a_state_begins_anew_after_it(bench: Workbench) -> None:
    config = bench.train_config().model_copy(update={"step_timeout_seconds": 1})

    ended = run(config, arm=Blocks("loading", bench.root / "stderr"))

    assert "step 1 hangs" in ended.result.message
    assert "resumes from the base model" in ended.result.message


def test_the_watch_ends_with_training(bench: Workbench) -> None:
    """A thread that kept running would end the process while checkpoints are published."""
    with StepWatchdog(bench.train_config(), 0, lambda step: f"step {step} hangs") as watchdog:
        thread = watchdog._thread
        assert thread.is_alive()

    assert not thread.is_alive()
