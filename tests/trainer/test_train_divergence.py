# SPDX-License-Identifier: Apache-2.0
"""Detection of divergence, and the states that remain."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.train.states.ledger import MAX_HIGH_LOSS_STEPS, MEDIAN_STEPS, MIN_STEPS, RecentLosses
from tests.trainer.workbench import ROWS, Sheet, Workbench, elsewhere


def losses(*values: float) -> RecentLosses:
    recent = RecentLosses()
    for value in values:
        recent.add(value)
    return recent


USUAL = [0.4, 0.5, 0.6] * 10


def test_five_high_losses_in_a_row_are_a_divergence() -> None:
    assert not losses(*USUAL, *[5.1] * (MAX_HIGH_LOSS_STEPS - 1)).diverged
    assert losses(*USUAL, *[5.1] * MAX_HIGH_LOSS_STEPS).diverged


def test_high_is_above_ten_times_the_median() -> None:
    assert losses(*USUAL, 5.0).high_steps == 0
    assert losses(*USUAL, 5.01).high_steps == 1


def test_a_usual_loss_in_between_makes_the_count_begin_anew() -> None:
    assert not losses(*USUAL, 9, 9, 9, 9, 4.9, 9, 9, 9, 9).diverged


def test_high_losses_do_not_lift_the_median() -> None:
    recent = losses(*USUAL, *[9, 9, 9, 9, 0.5] * 20)

    assert recent.median == 0.5


def test_the_fall_of_the_first_steps_is_no_measure() -> None:
    first = [0.1] * (MIN_STEPS - 1)

    assert losses(*first, 9).high_steps == 0
    assert losses(*first, 0.1, 9).high_steps == 1


def test_near_zero_ten_times_the_median_is_nothing() -> None:
    assert not losses(*[1e-5] * 30, *[0.9] * 10).diverged


def test_only_the_last_steps_count_and_no_more_are_kept() -> None:
    recent = losses(*[0.1] * 100, *[4.0] * (MEDIAN_STEPS // 2 + 1), *[0.5] * 24)

    assert len(recent.usual) == MEDIAN_STEPS


def test_the_ledger_keeps_losses_to_the_last_bit() -> None:
    recent = losses(*(1 / 3 + step / 7 for step in range(60)), 99)

    assert RecentLosses.model_validate_json(recent.model_dump_json()) == recent


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


SPOILED_STEP = 45


def config_for(bench: Workbench, validation: int = 0) -> TrainConfig:
    return bench.train_config(
        dataset=bench.dataset(ROWS, ROWS[:validation]),
        method=Method(lora=LoRA(r=8, alpha=16, dropout=0.05)),
        epochs=30,
        learning_rate=1e-2,
        batch_size=4,
        save_every_steps=1,
    )


@pytest.fixture(scope="module")
def memorized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that was stopped after it memorized its rows."""
    bench = Workbench(tmp_path_factory.mktemp("memorized"))
    stopped(bench, config_for(bench), SPOILED_STEP)
    return Path(bench.store_config.path)


def spoiled(bench: Workbench, memorized: Path) -> TrainConfig:
    """A run that continues in a copy of the store, after its adapter was scaled up."""
    shutil.copytree(memorized, bench.store_config.path)
    config = config_for(bench)
    spoil(bench, config)
    return config


def spoil(bench: Workbench, config: TrainConfig) -> None:
    """Scale the adapter of the last state up."""
    folder = bench.store.run_folder(config.run, "train").path / "state" / f"step-{SPOILED_STEP}"
    path = folder / "adapter_model.safetensors"
    save_file(
        {name: tensor * 20 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    (folder / MANIFEST_NAME).unlink()
    (folder / MANIFEST_NAME).write_bytes(Manifest.of(folder).to_bytes())


def stopped(bench: Workbench, config: TrainConfig, *steps: int) -> None:
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset(steps)))


def test_a_run_that_diverges_ends_with_everything_that_one_needs_to_know(
    bench: Workbench, memorized: Path
) -> None:
    config = spoiled(bench, memorized)

    failure = bench.train_failure(config)

    assert failure.reason == FailureReason.LOSS_DIVERGED
    assert failure.exit_code == ExitCode.BAD_CONFIG
    step = SPOILED_STEP + MAX_HIGH_LOSS_STEPS
    assert failure.message.startswith(f"step {step}: the training loss is ")
    assert "above 10 times its running median of 0." in failure.message
    assert "for 5 steps in a row, at a learning rate of " in failure.message
    assert "hyperparameters.learningRate below 0.01, and look for rows of extreme length" in failure.message
    assert f"last good state is step {SPOILED_STEP} in {bench.store_config.uri}" in failure.message


def test_states_to_go_back_to_are_not_pushed_out_by_those_of_a_high_loss(
    bench: Workbench, memorized: Path
) -> None:
    config = spoiled(bench, memorized)

    bench.train_failure(config)

    assert bench.states(config) == [f"step-{SPOILED_STEP - 1}", f"step-{SPOILED_STEP}"]


@pytest.mark.parametrize("stops", [(1,), (2, 4), (1, 2, 3, 4)])
def test_restarts_do_not_make_the_count_begin_anew(
    bench: Workbench, memorized: Path, stops: Iterable[int]
) -> None:
    other = elsewhere(bench, "uninterrupted")
    at_once = other.train_failure(spoiled(other, memorized))
    config = spoiled(bench, memorized)

    for after in stops:
        stopped(bench, config, SPOILED_STEP + after)
    failure = bench.train_failure(config)

    said, expected = (
        message.partition(" The last good")[0] for message in (failure.message, at_once.message)
    )
    assert said == expected


def test_where_only_states_of_a_high_loss_are_left_the_best_weights_are_named(bench: Workbench) -> None:
    config = config_for(bench, validation=4)
    stopped(bench, config, SPOILED_STEP)
    spoil(bench, config)
    for after in (1, 2):
        stopped(bench, config, SPOILED_STEP + after)

    failure = bench.train_failure(config)

    (best,) = (bench.store.run_folder(config.run, "train").path / "best").iterdir()
    assert failure.message.endswith(
        f"last good state is {best.name.replace('-', ' ')} in"
        f" {bench.store.run_folder(config.run, 'train').uri}/best/{best.name}"
    )
