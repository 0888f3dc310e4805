# SPDX-License-Identifier: Apache-2.0
"""Kept weights, in addition to the best and final ones."""

import signal
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.train.states.ledger import KeptStep, Retention
from tests.trainer.processes import PAUSE_SECONDS, TIMEOUT_SECONDS, start
from tests.trainer.workbench import ROWS, Sheet, Undisturbed, Workbench, elsewhere
from tests.waiting import eventually

METHODS = {"LoRA": Method(lora=LoRA(r=4, alpha=8, dropout=0.1)), "Full": Method(type="Full")}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_for(bench: Workbench, method: str = "LoRA", **settings: Any) -> TrainConfig:
    """Four epochs of three steps; a state after every second step."""
    settings = {"epochs": 4, "keep": 2, "keep_steps": (5, 8), **settings}
    return bench.train_config(dataset=bench.dataset(ROWS, ROWS[:5]), method=METHODS[method], **settings)


def kept(bench: Workbench, config: TrainConfig) -> set[str]:
    return bench.store.run_folder(config.run, "train").names("kept")


def stored(bench: Workbench) -> int:
    return len(list((bench.root / "store" / "checkpoints").iterdir()))


def test_the_newest_saved_steps_and_the_named_ones_are_published(
    bench: Workbench, undisturbed: Undisturbed
) -> None:
    result = undisturbed(config_for(bench))

    plain = [checkpoint for checkpoint in result.checkpoints if not (checkpoint.best or checkpoint.final)]
    best = {checkpoint.step for checkpoint in result.checkpoints if checkpoint.best}
    assert {checkpoint.step for checkpoint in plain} == {5, 6, 8, 10} - best
    assert [checkpoint.step for checkpoint in result.checkpoints] == sorted({5, 6, 8, 10, 12} | best), (
        "in the order of steps, the final one last"
    )


def test_kept_weights_are_those_that_the_run_had_after_the_step(bench: Workbench) -> None:
    """Weights that are kept after a step equal those of a run that is stopped there."""
    stopped = elsewhere(bench, "stopped")
    config = config_for(stopped)
    with pytest.raises(Preempted):
        stopped.train(config, Sheet(stop_at=frozenset({5})))
    state = stopped.store.run_folder(config.run, "train").path / "state" / "step-5"

    found = {checkpoint.step: checkpoint for checkpoint in bench.train(config_for(bench)).checkpoints}

    weights = bench.checkpoint(found[5]) / "adapter_model.safetensors"
    assert weights.read_bytes() == (state / "adapter_model.safetensors").read_bytes()
    assert found[5].epoch == pytest.approx(5 / 3)
    assert found[5].train_loss is not None
    assert found[5].validation_loss is None, "no validation ran after this step"
    assert found[6].validation_loss is not None, "an epoch ended with this step"


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_at_every_step_keeps_the_same_weights(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = config_for(bench, method)
    steps = config.hyperparameters.total_steps

    for step in range(1, steps + 1):
        with pytest.raises(Preempted):
            bench.train(config, Sheet(stop_at=frozenset({step})))

    assert bench.train(config).checkpoints == undisturbed(config).checkpoints


def test_a_run_that_is_killed_keeps_the_same_weights_and_nothing_twice(
    bench: Workbench, undisturbed: Undisturbed
) -> None:
    config = config_for(bench, epochs=20, keep_steps=(3, 5, 7))
    with start(config) as process:
        eventually(
            "kept weights", lambda: "step-7" in kept(bench, config), TIMEOUT_SECONDS, pause=PAUSE_SECONDS
        )
        assert process.kill() == -signal.SIGKILL

    result = bench.train(config)

    assert result.checkpoints == undisturbed(config).checkpoints
    assert stored(bench) == len(result.checkpoints)


class PulledPlug(BaseException):
    """The pod ends without notice."""


class PlugPuller(Sheet):
    """Ends the process when step 6 would be reported."""

    def progress(self, progress: Any) -> None:
        if progress.step == 6:
            raise PulledPlug


def test_weights_that_no_saved_state_names_are_written_again(
    bench: Workbench, undisturbed: Undisturbed
) -> None:
    """Step 5 is kept after the state of step 4 was saved, and repeated after the kill."""
    config = config_for(bench)
    with pytest.raises(PulledPlug):
        bench.train(config, PlugPuller())
    assert "step-5" in kept(bench, config)
    folder = bench.store.run_folder(config.run, "train").path / "kept" / "step-5"
    (folder / "adapter_model.safetensors").write_bytes(b"half of it")

    assert bench.train(config).checkpoints == undisturbed(config).checkpoints


def test_a_state_whose_kept_weights_are_damaged_is_not_used(
    bench: Workbench, undisturbed: Undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(bench, keep=1, keep_steps=())
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({9})))
    folder = bench.store.run_folder(config.run, "train").path / "kept" / "step-8"
    (folder / "adapter_model.safetensors").write_bytes(b"half of it")

    result = bench.train(config)

    assert "step-9 is ignored" in caplog.text
    assert result.checkpoints == undisturbed(config).checkpoints


def test_what_no_state_needs_is_removed_from_the_run(bench: Workbench) -> None:
    config = config_for(bench, keep=1, keep_steps=(1,))

    bench.train(config)

    assert kept(bench, config) == {"step-1", "step-8", "step-10"}, "one more than newest"
    steps = {checkpoint.step for checkpoint in bench.train(config).checkpoints}
    assert {1, 10, 12} <= steps
    assert 8 not in steps or len(steps) == 4


def test_without_the_fields_only_best_and_final_are_kept(bench: Workbench) -> None:
    config = config_for(bench, keep=0, keep_steps=())

    result = bench.train(config)

    assert all(checkpoint.best or checkpoint.final for checkpoint in result.checkpoints)
    assert kept(bench, config) == set()


def test_equal_weights_are_one_checkpoint(bench: Workbench) -> None:
    """The learning rate is so small that no step changes the weights."""
    config = bench.train_config(method=METHODS["Full"], keep=2, learning_rate=1e-30)

    (only,) = bench.train(config).checkpoints

    assert only.final
    assert only.best
    assert only.step == 6
    assert stored(bench) == 1


def retention(newest: int = 2, always: tuple[int, ...] = (3,)) -> Retention:
    return Retention(newest, frozenset(always), every_steps=10, total_steps=100)


@pytest.mark.parametrize(
    ("step", "loss_is_high", "keeps"),
    [(10, False, True), (10, True, False), (11, False, False), (3, True, True), (100, False, False)],
    ids=["saved regularly", "with a high loss", "another", "named", "the last"],
)
def test_which_steps_are_kept(step: int, *, loss_is_high: bool, keeps: bool) -> None:
    assert retention().keeps(step, loss_is_high=loss_is_high) == keeps


@pytest.mark.parametrize("final", [60, 100], ids=["ended early at a saved step", "ended as planned"])
def test_as_many_are_published_however_the_run_ends(final: int) -> None:
    kept: list[KeptStep] = []
    for step in (3, 10, 20, 30, 40, 50, 60):
        kept = retention().candidates([*kept, KeptStep(step=step, epoch=1, train_loss=1)])

    steps = [each.step for each in retention().published(kept, final)]

    assert steps == ([3, 40, 50] if final == 60 else [3, 50, 60])


def test_a_step_beyond_the_last_one_is_refused_before_training(bench: Workbench) -> None:
    failure = bench.preflight_failure(keep_steps=(2, 99), hyperparameters={"epochs": 3})

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.message.startswith("checkpoints.keepSteps: 99 cannot be kept")
    assert "only 6 steps" in failure.message
    assert bench.preflight(keep_steps=(2, 6), hyperparameters={"epochs": 3}).hyperparameters.total_steps == 6
