# SPDX-License-Identifier: Apache-2.0
"""When a run validates, on which rows, and what follows from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.train.batches import LazyBatches, RowLimit
from finetune_trainer.train.callbacks import MIN_SAMPLED_ROWS, validation_sample
from finetune_trainer.train.trainer import CompletionTrainer
from tests.trainer import test_train_preference as preference
from tests.trainer.test_train_budget import CPU, ENCODED, model_for, padded
from tests.trainer.test_train_early import CONTRADICTIONS
from tests.trainer.test_train_resume import METHODS, preempted
from tests.trainer.workbench import ROWS, Sheet, Workbench, elsewhere


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_for(bench: Workbench, method: str = "LoRA", **settings: Any) -> TrainConfig:
    """Two epochs of six steps."""
    rows = preference.rows_for(method) if method in preference.METHODS else ROWS
    return bench.train_config(
        dataset=bench.dataset(rows, CONTRADICTIONS if method == "LoRA" else rows[:5]),
        method=(METHODS | preference.METHODS)[method],
        batch_size=2,
        **{"validate_every_steps": 4, "learning_rate": 2e-2, **settings},
    )


def validated(sheet: Sheet) -> dict[int, float]:
    """The validation losses by the step after which each was first reported."""
    found: dict[int, float] = {}
    for progress in sheet.seen:
        if progress.validation_loss is not None and progress.validation_loss not in found.values():
            found[progress.step or 0] = progress.validation_loss
    return found


def test_a_run_validates_at_its_interval_and_after_its_last_step(bench: Workbench) -> None:
    sheet = Sheet()

    result = bench.train(config_for(bench, validate_every_steps=5), sheet)

    assert list(validated(sheet)) == [6, 11]
    assert [progress.validation_step for progress in sheet.seen] == [None] * 5 + [5] * 5 + [10] * 2
    best = next(each for each in result.checkpoints if each.best)
    final = result.checkpoints[-1]
    assert result.validation_loss == final.validation_loss
    assert best.step in {5, 10, 12}
    assert best.validation_loss == min(
        loss for loss in (*validated(sheet).values(), result.validation_loss) if loss is not None
    )


@pytest.mark.parametrize("method", ["LoRA", "DPO"])
def test_a_run_stopped_at_validations_goes_on_exactly(bench: Workbench, method: str) -> None:
    other = elsewhere(bench, "uninterrupted")
    settings: dict[str, Any] = {"validate_every_steps": 3, "save_every_steps": 100}
    straight = other.train(config_for(other, method, **settings))
    config = config_for(bench, method, **settings)
    for step in (3, 5, 9):
        preempted(bench, config, step)

    assert bench.train(config) == straight.model_copy(update={"restarts": 3})


def test_patience_counts_validations(bench: Workbench) -> None:
    config = config_for(bench, validate_every_steps=1, early_stopping_patience=2, epochs=12)

    result = bench.train(config)

    best, final = result.checkpoints
    assert result.stopped_early
    assert final.step == best.step + 2


def hyperparameters(**settings: Any) -> Hyperparameters:
    return Hyperparameters(
        epochs=1,
        learning_rate=1e-3,
        max_sequence_length=64,
        seed=0,
        total_steps=1000,
        save_every_steps=10,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        **{"batch_size": 8, **settings},
    )


@pytest.mark.parametrize(
    ("rows", "interval", "batch_size", "expected"),
    [
        (10_000, None, 8, 10_000),
        (10_000, 10, 8, MIN_SAMPLED_ROWS),
        (100, 10, 8, 100),
        (10_000, 500, 8, 1200),
        (10_000, 500, 32, 4800),
    ],
    ids=["after an epoch", "short interval", "few rows", "long interval", "large steps"],
)
def test_a_validation_between_epochs_reads_a_sample(
    rows: int, interval: int | None, batch_size: int, expected: int
) -> None:
    settings = hyperparameters(validate_every_steps=interval, batch_size=batch_size)

    sample = validation_sample(range(rows), settings)

    assert len(set(sample)) == expected
    assert list(sample) == list(validation_sample(range(rows), settings))


def test_one_batch_at_a_time_is_on_the_device() -> None:
    collated = []

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        collated.append(rows)
        return {"rows": torch.tensor(rows)}

    batches = iter(LazyBatches([[1, 2], [3]], collate, CPU))

    assert collated == []
    assert next(batches)["rows"].tolist() == [1, 2]
    assert collated == [[1, 2]]


def test_the_longest_rows_are_validated_first(tmp_path: Path) -> None:
    trainer = CompletionTrainer(
        model_for(), ENCODED, padded, hyperparameters(), tmp_path, division=RowLimit(2), device=CPU
    )

    widths = [batch["input_ids"].shape[1] for batch in trainer.batches(ENCODED)]

    assert widths == sorted((row.num_tokens for row in ENCODED), reverse=True)[::2]


def test_preflight_refuses_an_interval_without_validation_rows(bench: Workbench) -> None:
    failure = bench.preflight_failure(hyperparameters={"validate_every_steps": 10})

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert "validation.everySteps: validation needs validation rows" in failure.message
