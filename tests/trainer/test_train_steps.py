# SPDX-License-Identifier: Apache-2.0
"""The steps of a run: how their rows are divided, how many there are, and their learning rate."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Scheduler, StepDivision
from finetune_trainer.contract.method import LoRA, Method, MethodType
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.tokens.batching import TokenBudget, pack
from finetune_trainer.train import trainer
from finetune_trainer.train.batches import (
    Division,
    RowLimit,
    Steps,
    batch_sizes,
    largest_batch,
    rows_read,
    run_steps,
)
from finetune_trainer.train.memory_ladder import MemoryLadder
from finetune_trainer.train.state_folders import LEDGER
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger
from tests.trainer.test_distributed import member
from tests.trainer.test_train_distributed import Pods, gradients, pods, show_gradients
from tests.trainer.workbench import ROWS, RUN, Sheet, Undisturbed, Workbench, elsewhere, weights

WITHOUT_DROPOUT = Method(lora=LoRA(r=4, alpha=8, dropout=0))
UNEQUAL = tuple(
    Row.pair(row.messages[0].content, "ship " * (1 + index % 7)) for index, row in enumerate(ROWS)
)
"""Rows with very different numbers of labelled tokens."""


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.mark.parametrize("processes", range(1, 10))
def test_rows_are_spread_evenly_over_processes_and_their_batches(processes: int) -> None:
    for rows, max_rows in itertools.product(range(34), (None, 1, 2, 3, 8)):
        sizes = batch_sizes(rows, processes, max_rows)

        assert sum(sizes) == rows
        assert all(0 < size <= (max_rows or rows) for size in sizes)
        assert not sizes or max(sizes) - min(sizes) <= 1
        of_processes = [sum(sizes[rank::processes]) for rank in range(processes)]
        assert max(of_processes) - min(of_processes) <= 1
        fewest = -(-max(of_processes) // (max_rows or max(1, rows)))
        assert max(len(sizes[rank::processes]) for rank in range(processes)) == fewest


@pytest.mark.parametrize("processes", range(1, 7))
def test_an_epoch_reads_each_row_once_in_the_steps_of_one_process(processes: int) -> None:
    lengths = [1 + 7 * row % 13 for row in range(23)]
    members = [member(0, 1), *(member(rank, processes) for rank in range(processes))]
    order = torch.randperm(23, generator=torch.Generator().manual_seed(3 + 2)).tolist()
    divisions: list[Division] = [*map(RowLimit, (None, 1, 3)), TokenBudget(16, pack, packs=True)]
    for batch_size, division in itertools.product(range(1, 15), divisions):
        samplers = [Steps(lengths, batch_size, division, 3, each) for each in members]
        for sampler in samplers:
            sampler.set_epoch(2)

        assert {len(sampler) for sampler in samplers} == {run_steps(23, batch_size, epochs=1)}
        for number, (alone, *shares) in enumerate(zip(*samplers, strict=True)):
            rows = sorted(order[batch_size * number :][:batch_size])
            assert sorted(itertools.chain.from_iterable(alone)) == rows
            assert len({len(batches) for batches in shares}) == 1, (
                "processes exchange gradients equally often"
            )
            assert sorted(row for batches in shares for batch in batches for row in batch if row < 23) == rows


def test_the_longest_rows_of_a_step_are_together_and_first() -> None:
    assert RowLimit(2).split([3, 30, 9, 8, 1]) == [[1], [2, 3], [0, 4]]
    assert largest_batch(5, 1, 2) == 2


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps", "read"),
    [
        (2, None, 6, 20),
        (2, 6, 6, 20),
        (2, 5, 5, 20),
        (2, 2, 2, 8),
        (100, 7, 7, 28),
    ],
)
def test_a_run_ends_after_its_epochs_or_its_max_steps(
    epochs: int, max_steps: int | None, steps: int, read: int
) -> None:
    assert run_steps(10, 4, epochs, max_steps) == steps
    assert rows_read(10, 4, epochs, max_steps) == read


def config_for(bench: Workbench, rows: Sequence[Row] = UNEQUAL, **settings: Any) -> TrainConfig:
    chosen = {"method": WITHOUT_DROPOUT, "batch_size": 5, **settings}
    return bench.train_config(dataset=bench.dataset(rows, rows[:5]), rows=len(rows), **chosen)


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[torch.Tensor]]:
    """A run whose steps are single batches: its result, and means of its gradients."""
    bench = Workbench(tmp_path_factory.mktemp("undivided"))
    with pytest.MonkeyPatch.context() as patch:
        result = shown(patch, bench)
    return result, gradients(bench, result.steps)


def shown(patch: pytest.MonkeyPatch, bench: Workbench, **settings: Any) -> TrainResult:
    """Train without clipping, which would hide gradients that are too large."""
    patch.setattr(trainer, "MAX_GRADIENT_NORM", 1e9)
    return bench.train(config_for(bench, **settings))


@pytest.mark.parametrize(
    "division",
    [
        {"max_batch_rows": 1},
        {"max_batch_rows": 2},
        {"max_batch_rows": 3},
        {"max_batch_rows": 4},
        {"max_batch_tokens": 20},
        {"max_batch_tokens": 60},
    ],
)
def test_weights_do_not_depend_on_how_a_step_is_divided(
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    undivided: tuple[TrainResult, list[torch.Tensor]],
    division: dict[str, int],
) -> None:
    """Steps of 5, 5 and 2 rows, whose labelled tokens differ by a factor of seven."""
    expected, means = undivided

    result = shown(monkeypatch, bench, **division)

    assert (result.steps, result.tokens) == (expected.steps, expected.tokens) == (6, expected.tokens)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-6)
    torch.testing.assert_close(gradients(bench, result.steps), means, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "sharded", "max_rows"),
    [
        ("LoRA", None, 2),
        pytest.param("LoRA", None, None, marks=pytest.mark.full),
        pytest.param("Full", True, 1, marks=pytest.mark.full),
        pytest.param("Full", False, 2, marks=pytest.mark.full),
    ],
)
def test_two_processes_share_steps_with_remainders_and_train_as_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: MethodType,
    sharded: bool | None,
    max_rows: int | None,
) -> None:
    """Steps of 5, 5 and 1 rows: 3 and 2 rows per process, and in the last step one has none."""
    monkeypatch.setattr(trainer, "MAX_GRADIENT_NORM", 1e9)
    settings: dict[str, Any] = {
        "dropout": 0,
        "method": method,
        "rows": UNEQUAL[:11],
        "settings": {"batch_size": 5, "max_batch_rows": max_rows, "sharded": sharded},
    }
    one = elsewhere(Workbench(tmp_path), "one")
    expected = one.train(Pods(one, **settings).alone())
    with pods(tmp_path, **settings) as two:
        leader, other = two.run(show_gradients)

    assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
    result = two.result
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-6)
        together, alone = weights(two.bench.checkpoint(mine)), weights(one.checkpoint(theirs))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        gradients(two.bench, result.steps), gradients(one, result.steps), rtol=1e-3, atol=1e-7
    )


def ledger(bench: Workbench, step: int) -> RunLedger:
    folder = bench.store.run_folder(RUN, "train").path / "state" / f"step-{step}"
    return RunLedger.model_validate_json((folder / LEDGER).read_bytes())


def with_division(config: TrainConfig, **division: int | None) -> TrainConfig:
    """The config with another plan for the division of a step."""
    wanted = StepDivision(**division).model_dump()
    return config.model_copy(update={"hyperparameters": config.hyperparameters.model_copy(update=wanted)})


@pytest.mark.parametrize("planned", [{"max_batch_rows": 5}, {"max_batch_rows": 1}, {"max_batch_tokens": 64}])
def test_a_restarted_run_divides_its_steps_as_it_began(
    bench: Workbench, undisturbed: Undisturbed, planned: dict[str, int]
) -> None:
    """With dropout, another division would end in other weights."""
    config = config_for(bench, method=Method(lora=LoRA(r=4, alpha=8, dropout=0.1)), max_batch_rows=2)
    expected = undisturbed(config)
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({3})))
    assert ledger(bench, 3).division == StepDivision(max_batch_rows=2)

    result = bench.train(with_division(config, **planned))

    assert result.checkpoints == expected.checkpoints
    assert ledger(bench, 6).division == StepDivision(max_batch_rows=2)


def test_exhausted_memory_alone_changes_the_recorded_division(bench: Workbench) -> None:
    config = config_for(bench, max_batch_rows=2)
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({3})))
    MemoryLadder(halvings=1, max_batch_rows=1).write(bench.store.run_folder(RUN, "train"))

    result = bench.train(config)

    assert result.max_batch_rows == 1
    assert ledger(bench, 6).division == StepDivision(max_batch_rows=1)


def test_how_a_step_is_divided_is_not_part_of_the_fingerprint(bench: Workbench) -> None:
    config = config_for(bench, max_batch_rows=2)
    known = Fingerprint.of(config)
    divided = Fingerprint.of(with_division(config, max_batch_tokens=20))
    larger = config.hyperparameters.model_copy(update={"batch_size": 6})

    assert divided.differences(known) == []
    assert Fingerprint.model_validate_json(known.model_dump_json()).differences(known) == []
    (difference,) = Fingerprint.of(config.model_copy(update={"hyperparameters": larger})).differences(known)
    assert "'batch_size': 5" in difference
    assert "'batch_size': 6" in difference


@pytest.mark.parametrize(
    ("warmup_ratio", "max_steps"),
    [
        (0.3, 7),
        *(
            pytest.param(ratio, steps, marks=pytest.mark.full)
            for ratio in (0, 0.05, 0.3, 0.5)
            for steps in (None, 7)
        ),
    ],
)
@pytest.mark.parametrize("scheduler", ["Linear", "Cosine", "Constant"])
def test_the_learning_rate_of_each_step_is_that_of_transformers(
    bench: Workbench, scheduler: Scheduler, warmup_ratio: float, max_steps: int | None
) -> None:
    """Over the steps that the run makes, also if it is interrupted."""
    config = config_for(bench, epochs=3, scheduler=scheduler, warmup_ratio=warmup_ratio, max_steps=max_steps)
    total = max_steps or 9
    before, after = Sheet(stop_at=frozenset({4})), Sheet()
    with pytest.raises(Preempted):
        bench.train(config, before)
    result = bench.train(config, after)

    assert result.steps == config.hyperparameters.total_steps == total
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], config.hyperparameters.learning_rate)
    warmup = math.ceil(warmup_ratio * total)
    schedules: dict[Scheduler, Callable[..., LRScheduler]] = {
        "Linear": partial(get_linear_schedule_with_warmup, num_training_steps=total),
        "Cosine": partial(get_cosine_schedule_with_warmup, num_training_steps=total),
        "Constant": get_constant_schedule_with_warmup,
    }
    schedule = schedules[scheduler](optimizer, warmup)
    expected = []
    for _ in range(total):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [progress.learning_rate for progress in (*before.seen, *after.seen)] == expected


def test_weight_decay_shrinks_the_trained_weights(bench: Workbench) -> None:
    """In the first step the gradient of A is 0, because B is 0."""
    settings: dict[str, Any] = {"max_steps": 1, "scheduler": "Constant", "warmup_ratio": 0}
    other = elsewhere(bench, "decayed")

    plain = weights(bench.checkpoint(bench.train(config_for(bench, **settings)).checkpoints[-1]))
    config = config_for(other, weight_decay=0.5, **settings)
    decayed = weights(other.checkpoint(other.train(config).checkpoints[-1]))

    for name, tensor in plain.items():
        factor = 1 - 0.5 * config.hyperparameters.learning_rate if "lora_A" in name else 1
        torch.testing.assert_close(decayed[name], factor * tensor)


@pytest.mark.parametrize("validation", [UNEQUAL[:5], ()])
@pytest.mark.parametrize("max_steps", [2, 4])
def test_a_run_of_max_steps_ends_within_an_epoch_with_losses(
    bench: Workbench, max_steps: int, validation: tuple[Row, ...]
) -> None:
    config = bench.train_config(
        dataset=bench.dataset(UNEQUAL, validation), method=WITHOUT_DROPOUT, batch_size=5, max_steps=max_steps
    )

    result = bench.train(config)

    final = result.checkpoints[-1]
    assert (result.steps, final.step, final.epoch) == (max_steps, max_steps, max_steps / 3)
    assert result.train_loss is not None
    assert (result.validation_loss is None) == (not validation)


def test_preflight_refuses_fewer_rows_per_step_than_processes(bench: Workbench) -> None:
    failure = bench.preflight_failure(hyperparameters={"batch_size": 3}, nodes=2, devices=2)

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.message.startswith(
        "hyperparameters.batchSize: 3 rows per optimizer step cannot be spread over 4 devices"
    )


def test_preflight_predicts_the_steps_that_the_run_makes(bench: Workbench) -> None:
    whole, part = (bench.preflight(hyperparameters={"epochs": 4, **more}) for more in ({}, {"max_steps": 2}))

    assert (whole.hyperparameters.total_steps, part.hyperparameters.total_steps) == (8, 2)
    assert whole.prediction is not None
    assert part.prediction is not None
    assert part.prediction.flops == pytest.approx(whole.prediction.flops / 4)
