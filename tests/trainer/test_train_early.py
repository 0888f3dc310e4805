# SPDX-License-Identifier: Apache-2.0
"""Early stopping when the validation loss does not improve, and detection of overfitting."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import Preempted
from tests.trainer.workbench import ROWS, Sheet, Undisturbed, Workbench

CONTRADICTIONS = tuple(
    Row.pair(row.messages[0].content, other.output) for row, other in itertools.pairwise(ROWS[:5])
)
"""Training increases the loss on these rows."""
STEPS_PER_EPOCH = 3


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_for(
    bench: Workbench, validation: tuple[Row, ...] = CONTRADICTIONS, **settings: Any
) -> TrainConfig:
    return bench.train_config(
        dataset=bench.dataset(ROWS, validation),
        method=Method(lora=LoRA(r=8, alpha=16, dropout=0.1)),
        batch_size=4,
        **{
            "epochs": 12,
            "learning_rate": 2e-2,
            "save_every_steps": 100,
            "early_stopping_patience": 2,
            **settings,
        },
    )


def preempted(bench: Workbench, config: TrainConfig, *steps: int) -> None:
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset(steps)))


def epochs_of(*checkpoints: CheckpointResult) -> list[float]:
    return [checkpoint.epoch for checkpoint in checkpoints]


@pytest.mark.parametrize("patience", [1, 2])
def test_a_run_ends_so_many_epochs_after_its_lowest_validation_loss(bench: Workbench, patience: int) -> None:
    config = config_for(bench, early_stopping_patience=patience)

    result = bench.train(config)

    best, final = result.checkpoints
    assert result.stopped_early
    assert result.steps == final.step < config.hyperparameters.total_steps
    assert final.step == best.step + patience * STEPS_PER_EPOCH
    assert epochs_of(best, final) == [best.step / STEPS_PER_EPOCH, final.step / STEPS_PER_EPOCH]
    assert best.best
    assert final.final
    assert best.validation_loss is not None
    assert final.validation_loss is not None
    assert best.validation_loss < final.validation_loss
    assert bench.states(config) == [f"step-{final.step}"]


def test_without_patience_every_step_is_made(bench: Workbench) -> None:
    result = bench.train(config_for(bench, early_stopping_patience=None))

    assert result.steps == 12 * STEPS_PER_EPOCH
    assert not result.stopped_early


def test_a_loss_that_goes_on_falling_ends_nothing(bench: Workbench) -> None:
    result = bench.train(config_for(bench, ROWS[:4], epochs=4, early_stopping_patience=1, learning_rate=5e-3))

    assert result.steps == 4 * STEPS_PER_EPOCH
    assert not result.stopped_early
    assert not result.overfit


def test_a_patience_that_ends_with_the_last_epoch_is_nothing_early(
    bench: Workbench, undisturbed: Undisturbed
) -> None:
    early = undisturbed(config_for(bench)).steps // STEPS_PER_EPOCH

    result = bench.train(config_for(bench, epochs=early, early_stopping_patience=early - 1))

    assert result.steps == early * STEPS_PER_EPOCH
    assert not result.stopped_early


@pytest.mark.full
def test_a_run_stopped_at_every_step_ends_as_early_and_with_the_same_weights(
    bench: Workbench, undisturbed: Undisturbed
) -> None:
    config = config_for(bench)
    expected = undisturbed(config)

    for step in range(1, expected.steps + 1):
        preempted(bench, config, step)

    assert bench.train(config) == expected.model_copy(update={"restarts": expected.steps})


def test_a_run_that_has_stopped_early_makes_no_further_step_when_its_pod_is_lost(bench: Workbench) -> None:
    config = config_for(bench)
    first = bench.train(config)

    sheet = Sheet()
    again = bench.train(config, sheet)

    assert sheet.seen == []
    assert again == first.model_copy(update={"restarts": 1})


def test_another_patience_is_another_run(bench: Workbench) -> None:
    config = config_for(bench)
    preempted(bench, config, 2)
    changed = config.hyperparameters.model_copy(update={"early_stopping_patience": 3})

    failure = bench.train_failure(config.model_copy(update={"hyperparameters": changed}))

    assert failure.reason == FailureReason.FINGERPRINT_MISMATCH


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_overfitting(bench: Workbench) -> None:
    result = bench.train(config_for(bench, early_stopping_patience=None))

    best, final = result.checkpoints
    assert result.overfit
    assert best.validation_loss is not None
    assert final.validation_loss is not None
    assert best.train_loss is not None
    assert final.train_loss is not None
    assert final.validation_loss > 1.05 * best.validation_loss
    assert final.train_loss < best.train_loss


def test_preflight_refuses_patience_without_validation_rows(bench: Workbench) -> None:
    failure = bench.preflight_failure(hyperparameters={"early_stopping_patience": 2})

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert "validation.earlyStoppingPatience" in failure.message
    assert "raise split.validation" in failure.message


def test_preflight_keeps_the_patience(bench: Workbench) -> None:
    dataset = bench.dataset(ROWS, ROWS[:2])

    result = bench.preflight(dataset=dataset, hyperparameters={"early_stopping_patience": 2})

    assert result.hyperparameters.early_stopping_patience == 2
