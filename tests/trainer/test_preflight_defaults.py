# SPDX-License-Identifier: Apache-2.0
"""Default hyperparameters."""

from typing import Any

import pytest

from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.preflight.defaults import choose_hyperparameters, sequence_length
from finetune_trainer.runtime.termination import StageFailure
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
        batch_size=8,
        max_batch_rows=8,
        max_sequence_length=128,
        seed=42,
        total_steps=75,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        save_every_steps=10,
    )


def test_values_of_the_user_are_kept() -> None:
    wanted: dict[str, Any] = {
        "epochs": 5,
        "learning_rate": 1e-5,
        "batch_size": 6,
        "max_sequence_length": 50,
        "seed": 0,
        "save_every_steps": 4,
        "early_stopping_patience": 2,
        "gradient_checkpointing": True,
        "validate_every_steps": 6,
        "max_steps": 17,
        "warmup_ratio": 0.0,
        "scheduler": "Cosine",
        "weight_decay": 0.1,
    }

    given = chosen(rows=20, **wanted)

    known = {"total_steps": 17, "processes": 1, "max_batch_rows": 6}
    assert given.model_dump(exclude_none=True) == wanted | known


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
    ("length", "at_once"), [(64, 8), (1024, 8), (1100, 4), (2048, 4), (2700, 3), (8192, 1)]
)
def test_a_step_has_eight_rows_and_long_rows_are_computed_in_parts(length: int, at_once: int) -> None:
    given = chosen(max_sequence_length=length)

    assert (given.batch_size, given.max_batch_rows) == (8, at_once)


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

    assert (settings.batch_size, settings.max_batch_rows) == (8, batch)


@pytest.mark.parametrize(
    ("processes", "longest", "batch_size", "at_once"),
    [(2, 90, 8, 4), (3, 90, 8, 3), (4, 90, 8, 2), (16, 90, 16, 1), (2, 4096, 8, 2), (2, 8000, 8, 1)],
)
def test_a_step_has_eight_rows_of_all_processes_or_one_of_each(
    processes: int, longest: int, batch_size: int, at_once: int
) -> None:
    length = 8000 if longest == 8000 else None
    made = chosen(longest=longest, processes=processes, max_sequence_length=length, epochs=1)

    assert (made.batch_size, made.max_batch_rows, made.processes) == (batch_size, at_once, processes)
    assert made.total_steps == -(-200 // batch_size)


@pytest.mark.parametrize("token_budget", [None, 16_384])
@pytest.mark.parametrize("processes", range(1, 10))
def test_a_batch_size_of_the_user_is_kept_unless_a_process_would_have_no_row(
    processes: int, token_budget: int | None
) -> None:
    known: dict[str, Any] = {"processes": processes, "token_budget": token_budget, "train_tokens": 200 * 50}
    for batch_size in range(1, processes):
        with pytest.raises(StageFailure) as caught:
            chosen(batch_size=batch_size, **known)
        assert caught.value.reason == FailureReason.INVALID_CONFIG
        assert f"batchSize: {batch_size} rows" in caught.value.message
        assert f"over {processes} devices" in caught.value.message
    for batch_size in (*range(processes, 18), 64, 1000):
        made = chosen(batch_size=batch_size, **known)
        assert (made.batch_size, made.max_batch_tokens) == (batch_size, token_budget)
        assert made.total_steps == 3 * -(-200 // batch_size)


@pytest.mark.parametrize(
    ("wanted", "epochs", "steps"),
    [
        ({"max_steps": 10}, 1, 10),
        ({"max_steps": 25}, 1, 25),
        ({"max_steps": 26}, 2, 26),
        ({"max_steps": 1000}, 40, 1000),
        ({"max_steps": 1000, "epochs": 2}, 2, 50),
        ({"max_steps": 30, "epochs": 2}, 2, 30),
        ({"max_steps": 30, "epochs": 2, "batch_size": 100}, 2, 4),
    ],
)
def test_a_run_ends_after_the_first_of_epochs_and_max_steps(
    wanted: dict[str, Any], epochs: int, steps: int
) -> None:
    made = chosen(rows=200, **wanted)

    assert (made.epochs, made.total_steps) == (epochs, steps)
    assert made.max_steps == wanted["max_steps"]


def test_a_part_of_a_long_epoch_is_validated_as_often_as_a_run_of_that_length() -> None:
    assert chosen(rows=100_000, max_steps=4000).validate_every_steps == 200
    assert chosen(rows=100_000, max_steps=150).validate_every_steps is None


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
        ({"rows": 5, "processes": 4}, 8),
        ({"processes": 3}, 64),
        ({"max_steps": 10_000}, 8),
    ],
)
def test_steps_have_more_rows_where_these_fill_the_devices_and_the_run_stays_long(
    settings: dict[str, Any], rows_per_step: int
) -> None:
    found = by_tokens(**settings)

    assert (found.max_batch_tokens, found.max_batch_rows) == (16_384, None)
    assert found.batch_size == rows_per_step


def test_a_token_budget_holds_the_longest_row() -> None:
    assert by_tokens(tokens=10_000, max_sequence_length=18_000).max_batch_tokens == 18_000


@pytest.mark.parametrize("method", ["DPO", "KTO", "ORPO"])
def test_rows_to_compare_are_not_divided_by_tokens(method: str) -> None:
    assert by_tokens(method=method) == chosen(method, rows=40_000, longest=200)
