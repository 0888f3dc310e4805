# SPDX-License-Identifier: Apache-2.0
"""Default hyperparameters."""

from typing import Any

import pytest

from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.preflight.defaults import choose_hyperparameters, sequence_length
from finetune_trainer.runtime.failure import StageFailure
from tests.methods import method_of


def chosen(
    method: str = "LoRA",
    *,
    rows: int = 200,
    longest: int = 90,
    hidden_size: int = 640,
    context_length: int | None = 32768,
    processes: int = 1,
    token_budget: int | None = None,
    train_tokens: int = 0,
    **wanted: Any,
) -> Hyperparameters:
    requested, how = RequestedHyperparameters(**wanted), method_of(method)
    return choose_hyperparameters(
        requested,
        how,
        train_rows=rows,
        longest_row_tokens=longest,
        max_sequence_length=sequence_length(
            requested.max_sequence_length, how.objective, longest, context_length
        ),
        hidden_size=hidden_size,
        processes=processes,
        token_budget=token_budget,
        train_tokens=train_tokens,
    )


def test_the_defaults_of_a_small_dataset_and_a_small_model() -> None:
    assert chosen() == Hyperparameters(
        epochs=3,
        learning_rate=5.5e-4,
        per_device_batch_size=8,
        gradient_accumulation_steps=1,
        max_sequence_length=128,
        seed=42,
        total_steps=75,
        save_every_steps=10,
    )


def test_values_of_the_user_are_kept() -> None:
    wanted: dict[str, Any] = {
        "epochs": 5,
        "learning_rate": 1e-5,
        "per_device_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_sequence_length": 50,
        "seed": 0,
        "save_every_steps": 4,
        "early_stopping_patience": 2,
        "gradient_checkpointing": True,
        "validate_every_steps": 6,
    }

    given = chosen(rows=20, **wanted)

    assert given.model_dump(exclude_none=True) == wanted | {"total_steps": 5 * 4, "processes": 1}


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(1, 25), (4, 25), (5, 20), (20, 5), (33, 3), (34, 3), (8333, 3), (8334, 2), (25_000, 1), (10**6, 1)],
)
def test_few_rows_get_more_epochs_and_many_rows_fewer(rows: int, epochs: int) -> None:
    assert chosen(rows=rows).epochs == epochs


@pytest.mark.parametrize(
    ("method", "hidden_size", "rate"),
    [
        ("LoRA", 64, 6.5e-4),
        ("LoRA", 640, 5.5e-4),
        ("LoRA", 2000, 5e-4),
        ("LoRA", 4096, 2.9e-4),
        ("Full", 640, 5.5e-5),
        ("Full", 4096, 2.9e-5),
    ],
)
def test_the_learning_rate_falls_with_the_models_width(method: str, hidden_size: int, rate: float) -> None:
    assert chosen(method, hidden_size=hidden_size).learning_rate == rate


@pytest.mark.parametrize(
    ("longest", "context_length", "length"),
    [
        (1, 32768, 64),
        (64, 32768, 64),
        (65, 32768, 128),
        (3000, 32768, 3008),
        (30000, 32768, 8192),
        (30000, None, 8192),
        (3000, 512, 512),
        (90, None, 128),
    ],
)
def test_the_length_holds_the_longest_row_within_the_models_context(
    longest: int, context_length: int | None, length: int
) -> None:
    assert chosen(longest=longest, context_length=context_length).max_sequence_length == length


@pytest.mark.parametrize(("method", "length"), [("LoRA", 8192), ("DPO", 4096), ("KTO", 4096)])
def test_one_row_of_the_default_length_needs_the_memory_of_a_default_batch(method: str, length: int) -> None:
    assert chosen(method, longest=30_000).max_sequence_length == length


@pytest.mark.parametrize(
    ("length", "batch", "accumulation"), [(64, 8, 1), (1024, 8, 1), (1100, 4, 2), (2048, 4, 2), (8192, 1, 8)]
)
def test_a_step_has_eight_rows_and_long_rows_are_accumulated(
    length: int, batch: int, accumulation: int
) -> None:
    given = chosen(max_sequence_length=length)

    assert (given.per_device_batch_size, given.gradient_accumulation_steps) == (batch, accumulation)


def test_a_long_run_saves_ten_times() -> None:
    assert chosen(rows=8000).save_every_steps == 300


def test_a_length_beyond_the_models_context_is_rejected() -> None:
    with pytest.raises(StageFailure, match="maxSequenceLength: 1024 is more than the 512 tokens") as caught:
        chosen(context_length=512, max_sequence_length=1024)

    assert caught.value.reason == FailureReason.INVALID_CONFIG


@pytest.mark.parametrize(
    ("method", "longest", "batch"),
    [("LoRA", 2048, 4), ("DPO", 2048, 2), ("ORPO", 2048, 2), ("DPO", 4096, 1), ("KTO", 4096, 1)],
)
def test_a_row_with_two_sequences_counts_twice(method: str, longest: int, batch: int) -> None:
    settings = chosen(method, longest=longest, max_sequence_length=longest)

    assert settings.per_device_batch_size == batch
    assert settings.per_device_batch_size * settings.gradient_accumulation_steps == 8


@pytest.mark.parametrize(
    ("processes", "longest", "batch", "accumulation"),
    [(2, 90, 4, 1), (3, 90, 2, 1), (4, 90, 2, 1), (16, 90, 1, 1), (2, 4096, 2, 2), (2, 8000, 1, 4)],
)
def test_a_step_has_eight_rows_of_all_processes_where_they_fit(
    processes: int, longest: int, batch: int, accumulation: int
) -> None:
    length = 8000 if longest == 8000 else None
    made = chosen(longest=longest, processes=processes, max_sequence_length=length, epochs=1)

    assert (made.per_device_batch_size, made.gradient_accumulation_steps) == (batch, accumulation)
    assert made.processes == processes
    assert made.total_steps == -(-200 // (batch * accumulation * processes))


def test_with_fewer_rows_than_a_step_every_process_has_one() -> None:
    assert chosen(rows=5, processes=4).per_device_batch_size == 1


@pytest.mark.parametrize(
    ("rows", "wanted", "interval"),
    [
        (200, {}, None),
        (1592, {}, None),
        (1600, {}, 100),
        (8000, {}, 150),
        (100_000, {}, 625),
        (100_000, {"early_stopping_patience": 2}, None),
        (100_000, {"early_stopping_patience": 2, "validate_every_steps": 50}, 50),
        (200, {"validate_every_steps": 7}, 7),
    ],
)
def test_long_epochs_have_validations_in_between(
    rows: int, wanted: dict[str, Any], interval: int | None
) -> None:
    assert chosen(rows=rows, **wanted).validate_every_steps == interval


def by_tokens(*, rows: int = 40_000, tokens: int = 100, **settings: Any) -> Hyperparameters:
    """The hyperparameters for batches of at most 16,384 tokens."""
    budget: dict[str, Any] = {"token_budget": 16_384, "train_tokens": rows * tokens}
    return chosen(rows=rows, longest=2 * tokens, **budget, **settings)


@pytest.mark.parametrize(
    ("settings", "rows_per_step"),
    [
        ({"rows": 2_000}, 8),
        ({"rows": 5_000}, 16),
        ({}, 64),
        ({"tokens": 1_000}, 32),  # 16 rows are fewer tokens than a batch
        ({"tokens": 1_000, "processes": 4}, 64),
        ({"tokens": 4_000}, 8),
        ({"processes": 128}, 128),
        ({"rows": 5, "processes": 4}, 4),
    ],
)
def test_steps_have_more_rows_where_these_fill_the_devices_and_the_run_stays_long(
    settings: dict[str, Any], rows_per_step: int
) -> None:
    found = by_tokens(**settings)

    assert (found.max_batch_tokens, found.gradient_accumulation_steps) == (16_384, 1)
    assert found.per_device_batch_size * found.processes == rows_per_step


def test_a_token_budget_holds_the_longest_row() -> None:
    assert by_tokens(tokens=10_000, max_sequence_length=18_000).max_batch_tokens == 18_000


@pytest.mark.parametrize(
    "settings", [{"method": "DPO"}, {"per_device_batch_size": 4}, {"gradient_accumulation_steps": 2}]
)
def test_batches_of_trl_and_of_the_user_are_not_divided_by_tokens(settings: dict[str, Any]) -> None:
    assert by_tokens(**settings) == chosen(rows=40_000, longest=200, **settings)
