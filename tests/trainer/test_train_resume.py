# SPDX-License-Identifier: Apache-2.0
"""An interrupted run ends exactly like an uninterrupted one."""

import signal
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.distributed.process_group import PeerLost
from finetune_trainer.runtime.termination import Preempted
from tests.methods import sampled
from tests.trainer.processes import start
from tests.trainer.test_train_early import CONTRADICTIONS
from tests.trainer.workbench import ROWS, Sheet, Undisturbed, Workbench

METHODS = {
    "LoRA": Method(lora=LoRA(r=4, alpha=8, dropout=0.1)),
    "rsLoRA": Method(lora=LoRA(r=4, alpha=8, dropout=0.1, rslora=True)),
    "DoRA": Method(lora=LoRA(r=4, alpha=8, dropout=0.1, dora=True)),
    "QLoRA": Method(type="QLoRA", lora=LoRA(r=4, alpha=8, dropout=0.1)),
    "Full": Method(type="Full"),
}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_for(bench: Workbench, method: str = "LoRA", **settings: Any) -> TrainConfig:
    dataset = bench.dataset(ROWS, ROWS[:5])
    return bench.train_config(dataset=dataset, method=METHODS[method], **settings)


def preempted(bench: Workbench, config: TrainConfig, *steps: int) -> None:
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset(steps)))


def eventful(bench: Workbench, method: str) -> TrainConfig:
    """A run with everything that a resume state must carry.

    It keeps the weights of the best, of named and of saved steps, and ends two epochs after its lowest
    validation loss. Batches are accumulated, and activations are recomputed with the same dropout.
    """
    return bench.train_config(
        dataset=bench.dataset(ROWS, CONTRADICTIONS),
        method=METHODS[method],
        epochs=12,
        learning_rate=2e-2,
        early_stopping_patience=2,
        gradient_checkpointing=True,
        keep=2,
        keep_steps=(1, 5),
    )


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_run_stopped_at_every_step_ends_with_the_same_result(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = eventful(bench, method)
    expected = undisturbed(config)
    assert expected.stopped_early
    assert {1, 5} < {checkpoint.step for checkpoint in expected.checkpoints}
    assert len([checkpoint for checkpoint in expected.checkpoints if checkpoint.best]) == 1

    for step in range(1, expected.steps + 1):
        preempted(bench, config, step)
        assert f"step-{step}" in bench.states(config)

    assert bench.train(config) == expected.model_copy(update={"restarts": expected.steps})


@pytest.mark.parametrize("method", sampled(["rsLoRA", "DoRA", "QLoRA"], "QLoRA"))
def test_a_run_of_each_method_that_is_stopped_ends_with_the_same_weights(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = config_for(bench, method)

    for step in (2, 3, 6):  # within an epoch, at its end, and after the last step
        preempted(bench, config, step)

    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": 3})


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_a_plain_run_stopped_at_every_step_ends_with_the_same_result(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = config_for(bench, method)
    steps = config.hyperparameters.total_steps

    for step in range(1, steps + 1):
        preempted(bench, config, step)

    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": steps})


def test_a_signal_saves_and_ends_with_the_code_that_never_counts(
    bench: Workbench, undisturbed: Undisturbed
) -> None:
    config = config_for(bench, "Full", epochs=20, save_every_steps=100)
    with start(config) as process:
        process.read_until("step 1 of 60")
        process.send_signal(signal.SIGTERM)
        ended = process.finish()

    assert ended.code == ExitCode.PREEMPTED_SAVED, ended.logs
    (state,) = bench.states(config)
    assert 1 <= int(state.removeprefix("step-")) < 60
    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": 1})


def test_a_stop_before_the_first_step_is_no_start_without_progress(bench: Workbench) -> None:
    config = config_for(bench)

    for _ in range(5):
        sheet = Sheet()
        sheet.stop.set()
        with pytest.raises(Preempted):
            bench.train(config, sheet)

    assert bench.train(config).restarts == 5


def test_the_last_two_states_are_kept(bench: Workbench) -> None:
    config = config_for(bench, save_every_steps=1)

    bench.train(config)

    assert bench.states(config) == ["step-5", "step-6"]


def test_the_best_weights_survive_a_restart(bench: Workbench, undisturbed: Undisturbed) -> None:
    """The best weights survive although only the resume state of a later step is left."""
    config = config_for(bench, epochs=4, save_every_steps=1)
    preempted(bench, config, 8)

    assert bench.train(config).checkpoints == undisturbed(config).checkpoints


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "ledger.json", "manifest.json"]
)
def test_the_newest_state_that_is_whole_wins(
    bench: Workbench, name: str, undisturbed: Undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(bench, save_every_steps=1)
    preempted(bench, config, 4)
    newest = bench.store.run_folder(config.run, "train").path / "state" / "step-4"
    (newest / name).write_bytes((newest / name).read_bytes()[:-1])

    sheet = Sheet()
    result = bench.train(config, sheet)

    assert sheet.seen[0].step == 4
    (warning,) = (message for message in caplog.messages if "is ignored" in message)
    assert "/state/step-4 is ignored" in warning
    assert str(newest) not in warning
    assert result.checkpoints == undisturbed(config).checkpoints


def test_what_a_killed_save_left_is_no_state(bench: Workbench, undisturbed: Undisturbed) -> None:
    config = config_for(bench)
    preempted(bench, config, 3)
    states = bench.store.run_folder(config.run, "train").path / "state"
    (states / "step-3").rename(states / ".step-3.unfinished")

    result = bench.train(config)

    assert result.checkpoints == undisturbed(config).checkpoints
    assert not (states / ".step-3.unfinished").exists()


def test_a_state_of_another_config_is_refused_with_what_differs(bench: Workbench) -> None:
    config = config_for(bench)
    preempted(bench, config, 2)
    changed = config.hyperparameters.model_copy(update={"learning_rate": 1e-4})

    failure = bench.train_failure(config.model_copy(update={"hyperparameters": changed}))

    assert failure.reason == FailureReason.FINGERPRINT_MISMATCH
    assert "0.0001" in failure.message


class PulledPlug(BaseException):
    """The pod ends without notice."""


class PlugPuller(Sheet):
    """Ends the process when a step would be reported."""

    def progress(self, _: object) -> None:
        raise PulledPlug


def test_three_starts_without_a_new_state_end_the_run(bench: Workbench) -> None:
    config = config_for(bench)
    preempted(bench, config, 2)

    for _ in range(3):
        with pytest.raises(PulledPlug):
            bench.train(config, PlugPuller())

    failure = bench.train_failure(config)
    assert failure.reason == FailureReason.RESTARTED_WITHOUT_PROGRESS
    assert failure.exit_code == ExitCode.BAD_CONFIG
    assert "3 times from step 2" in failure.message


class PeerLoser(Sheet):
    """Another process is lost when a step would be reported."""

    def progress(self, _: object) -> None:
        raise PeerLost


def test_starts_that_lost_a_peer_count_too(bench: Workbench) -> None:
    config = config_for(bench)
    for _ in range(3):
        with pytest.raises(PeerLost):
            bench.train(config, PeerLoser())

    assert bench.train_failure(config).reason == FailureReason.RESTARTED_WITHOUT_PROGRESS


def test_a_new_state_makes_restarts_count_anew(bench: Workbench) -> None:
    config = config_for(bench, save_every_steps=1)

    for step in (1, 2):
        for _ in range(2):
            with pytest.raises(PulledPlug):
                bench.train(config, PlugPuller())
        preempted(bench, config, step)

    assert bench.train(config).restarts == 6
