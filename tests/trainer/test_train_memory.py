# SPDX-License-Identifier: Apache-2.0
"""Runs whose batches do not fit into memory."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model import probe
from finetune_trainer.model.device import is_out_of_memory, memory_use, peak_memory
from finetune_trainer.model.probe import log_probabilities
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.tokens.encoding import RowEncoder
from finetune_trainer.train import session
from finetune_trainer.train.memory_ladder import FILE
from finetune_trainer.train.model_setup import trainable_model
from tests.trainer.workbench import (
    ROWS,
    Sheet,
    Undisturbed,
    Workbench,
    elsewhere,
    tiny_tokenizer,
    weights,
)

LORA = Method(lora=LoRA(r=4, alpha=8, dropout=0.1))
WITHOUT_DROPOUT = Method(lora=LoRA(r=4, alpha=8, dropout=0))


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def allocation_fails() -> None:
    torch.empty(10**15)


def python_fails() -> None:
    raise MemoryError


@dataclass
class Device:
    """Has room for `rows` per batch, from batch number `full_from` on."""

    rows: int
    rows_recomputed: int = 0
    """Rows per batch that fit if activations are recomputed."""
    fail: Callable[[], None] = gpu_is_full
    full_from: int = 1
    computed: list[int] = field(default_factory=list)
    """Number of rows of each batch that was tried."""

    is_probed: bool = False
    """Whether a pass of a probe runs, which is not a batch of rows."""

    def uncounted(self, *arguments: Any) -> Tensor:
        self.is_probed = True
        try:
            return log_probabilities(*arguments)
        finally:
            self.is_probed = False

    def before(self, model: torch.nn.Module, _: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if self.is_probed:
            return
        rows = rows_of(inputs)
        self.computed.append(rows)
        room = max(self.rows, self.rows_recomputed if model.is_activation_checkpointing else 0)
        if model.training and rows > room and len(self.computed) >= self.full_from:
            self.fail()


def rows_of(inputs: dict[str, Tensor]) -> int:
    """Number of rows of a batch, padded or packed."""
    if "position_ids" in inputs:
        return int((inputs["position_ids"] == 0).sum())
    return len(inputs["input_ids"])


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], Device]:
    """Compute models on a device from now on."""

    def use(device: Device) -> Device:
        def loaded(*arguments: Any) -> Any:
            model = trainable_model(*arguments)
            model.register_forward_pre_hook(device.before, with_kwargs=True)
            return model

        monkeypatch.setattr(session, "trainable_model", loaded)
        monkeypatch.setattr(probe, "log_probabilities", device.uncounted)
        return device

    return use


On = Callable[[Device], Device]


def config_for(bench: Workbench, rows: int, max_rows: int | None = None, **settings: Any) -> TrainConfig:
    return bench.train_config(
        dataset=bench.dataset(ROWS, ROWS[:5]),
        batch_size=rows,
        max_batch_rows=max_rows,
        **{"method": LORA, **settings},
    )


@pytest.mark.parametrize("fail", [gpu_is_full, allocation_fails, python_fails])
def test_a_run_whose_batches_do_not_fit_is_the_run_with_smaller_ones(
    bench: Workbench, undisturbed: Undisturbed, on: On, fail: Callable[[], None]
) -> None:
    expected = undisturbed(config_for(bench, 4, 2))

    on(Device(rows=2, fail=fail))
    result = bench.train(config_for(bench, 4))

    assert (result.max_batch_rows, expected.max_batch_rows) == (2, None)
    assert result.steps == expected.steps == 6
    assert result.checkpoints == expected.checkpoints


def test_batches_are_halved_until_they_fit_and_that_is_no_start_without_progress(
    bench: Workbench, on: On
) -> None:
    small = elsewhere(bench, "small")
    expected = small.train(config_for(small, 8, 1))
    device = on(Device(rows=1))

    result = bench.train(config_for(bench, 8))

    assert result.checkpoints == expected.checkpoints
    assert result.max_batch_rows == 1
    assert device.computed[-1] == 1


def test_training_goes_on_from_the_last_state_with_smaller_batches(bench: Workbench, on: On) -> None:
    """The third step fails, and the second is saved."""
    settings: dict[str, Any] = {"method": WITHOUT_DROPOUT, "save_every_steps": 2}
    small = elsewhere(bench, "small")
    small_sheet, sheet = Sheet(), Sheet()
    expected = small.train(config_for(small, 4, 2, **settings), small_sheet)
    device = on(Device(rows=2, full_from=7))

    result = bench.train(config_for(bench, 4, **settings), sheet)

    trials = [1, 2, 1, 1]  # the tests of packing and of the output head
    assert device.computed[:7] == [*trials, 4, 4, 4]
    assert [progress.step for progress in sheet.seen] == [1, 2, 3, 4, 5, 6]
    assert [progress.learning_rate for progress in sheet.seen] == [
        progress.learning_rate for progress in small_sheet.seen
    ]
    final, wanted = result.checkpoints[-1], expected.checkpoints[-1]
    assert final.validation_loss == pytest.approx(wanted.validation_loss, rel=1e-3)
    assert final.train_loss == pytest.approx(wanted.train_loss, rel=1e-3)
    tensors = weights(bench.checkpoint(final))
    for name, tensor in weights(small.checkpoint(wanted)).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-2, atol=1e-4)


def test_a_restart_does_not_try_again_what_did_not_fit(
    bench: Workbench, undisturbed: Undisturbed, on: On
) -> None:
    expected = undisturbed(config_for(bench, 4, 2))
    config = config_for(bench, 4)
    device = on(Device(rows=2))
    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({3})))
    assert max(device.computed) == 4
    device.computed.clear()

    result = bench.train(config)

    assert max(device.computed) == 2
    assert result.checkpoints == expected.checkpoints
    assert result.max_batch_rows == 2


def test_a_damaged_memory_of_it_is_learned_anew(bench: Workbench, on: On) -> None:
    config = config_for(bench, 4)
    bench.store.run_folder(config.run, "train").write(FILE, b"{")
    on(Device(rows=2))

    assert bench.train(config).max_batch_rows == 2


def test_the_last_rung_recomputes_activations_and_changes_no_weights(
    bench: Workbench, undisturbed: Undisturbed, on: On
) -> None:
    """Memory for one row is exhausted until activations are recomputed, as with a very long row."""
    expected = undisturbed(config_for(bench, 4, 1))
    on(Device(rows=0, rows_recomputed=1))

    result = bench.train(config_for(bench, 4))

    assert result.gradient_checkpointing
    assert result.max_batch_rows == 1
    assert result.checkpoints == expected.checkpoints


def test_a_token_budget_is_halved_down_to_the_longest_row(bench: Workbench, on: On) -> None:
    config = config_for(bench, 4, max_batch_tokens=10**6)
    longest = max(RowEncoder(tiny_tokenizer()).encode(row).num_tokens for row in ROWS)
    small = elsewhere(bench, "small")
    expected = small.train(config_for(small, 4, max_batch_tokens=longest))
    device = on(Device(rows=1))

    result = bench.train(config)

    assert result.steps == expected.steps
    assert result.max_batch_tokens == 4 * longest // 4
    assert (result.max_batch_rows, result.gradient_checkpointing) == (None, None)
    assert result.checkpoints == expected.checkpoints
    assert device.computed[-1] == 1


def test_a_step_that_fits_into_no_budget_ends_with_figures(bench: Workbench, on: On) -> None:
    on(Device(rows=0))

    failure = bench.train_failure(config_for(bench, 4, max_batch_tokens=64))

    assert failure.reason == FailureReason.OUT_OF_MEMORY
    assert "the largest batch is the longest row, of " in failure.message
    assert "gradient checkpointing is on" in failure.message


def test_one_row_that_does_not_fit_ends_the_run_with_figures(bench: Workbench, on: On) -> None:
    on(Device(rows=0))

    failure = bench.train_failure(config_for(bench, 4, 2, method=Method(type="Full")))

    assert failure.reason == FailureReason.OUT_OF_MEMORY
    assert failure.exit_code == ExitCode.BAD_CONFIG
    assert failure.message.startswith("training ran out of memory on cpu, with ")
    assert "GiB in use (CUDA out of memory. Tried to allocate 2.00 GiB.); the largest batch is" in (
        failure.message
    )
    longest = int(failure.message.partition("the longest row, of ")[2].split()[0])
    assert "gradient checkpointing is on" in failure.message
    assert f"maxSequenceLength below {longest}" in failure.message
    assert "LoRA instead of Full" in failure.message
    assert "several devices and compute.sharding: Sharded" in failure.message
    assert "ComputeProfile with more memory" in failure.message


def test_smaller_batches_are_no_answer_to_a_model_that_does_not_fit(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []

    def load(*_: Any) -> None:
        loads.append(1)
        gpu_is_full()

    monkeypatch.setattr(session, "trainable_model", load)

    failure = bench.train_failure(config_for(bench, 4))

    assert failure.reason == FailureReason.OUT_OF_MEMORY
    assert failure.message.startswith("loading the base model ran out of memory")
    assert "batch" not in failure.message
    assert "maxSequenceLength" not in failure.message
    assert len(loads) == 1


def test_other_errors_are_not_taken_for_it(bench: Workbench, on: On) -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not fit")

    on(Device(rows=2, fail=fail))

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        bench.train(config_for(bench, 4))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes do not fit"), False),
        (OSError("not enough memory"), False),
    ],
)
def test_which_errors_say_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize(("limit", "expected"), [("1073741824\n", 1 << 30), ("max\n", None), (None, None)])
def test_all_memory_is_the_limit_of_the_pod(tmp_path: Path, limit: str | None, expected: int | None) -> None:
    path = tmp_path / "memory.max"
    if limit is not None:
        path.write_text(limit)

    used, total = memory_use(torch.device("cpu"), path)

    assert used > 1 << 20
    assert total == expected if expected is not None else total > 1 << 30


def test_the_peak_of_a_process_is_in_bytes_on_macos_too(monkeypatch: pytest.MonkeyPatch) -> None:
    on_linux = peak_memory(torch.device("cpu"))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")

    assert on_linux % 1024 == 0
    assert peak_memory(torch.device("cpu")) == pytest.approx(on_linux / 1024, rel=0.1)
