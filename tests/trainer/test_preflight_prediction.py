# SPDX-License-Identifier: Apache-2.0
"""What preflight predicts for a run, what it chooses by that, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, LlamaConfig, PreTrainedModel
from typing_extensions import override

from finetune_trainer.contract.accelerators import CARDS, DeviceFacts
from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model.loading import build_empty_model
from finetune_trainer.preflight.estimate import prediction
from finetune_trainer.preflight.estimate.fake_step import StepMeasure, StepShape
from finetune_trainer.preflight.estimate.memory import (
    ModelSizes,
    TrainMemory,
    quantized_difference,
    sharded_bytes,
)
from finetune_trainer.preflight.estimate.memory_plan import (
    FITS,
    MemoryPlan,
    plan_memory,
    predicted_out_of_memory,
)
from finetune_trainer.preflight.estimate.prediction import launches, run_flops, seconds_range
from finetune_trainer.train.model_setup import trainable_model
from tests.methods import method_of
from tests.trainer.workbench import Workbench
from tools.models import tiny
from tools.sizing.table import SHAPES

GIBIBYTE = 1 << 30
H100 = DeviceFacts(product="NVIDIA-H100-80GB-HBM3", memory_bytes=80 * GIBIBYTE, peak_teraflops=989)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def small_llama(**settings: Any) -> PreTrainedModel:
    """A Llama on the meta device: 2 layers, hidden size 64, a vocabulary of 512."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        **settings,
    )
    return build_empty_model(config)


class Stated(TrainMemory):
    """Memory of which a row takes 10 GiB, or 3 GiB if activations are recomputed; other methods take less."""

    @override
    def peak_bytes(self, shape: StepShape) -> int:
        row = {"LoRA": 10, "QLoRA": 8, "Full": 40}[self.method.type]
        activations = shape.rows * (3 if shape.checkpointing else 10) * shape.length // 1000
        return (row // (self.processes if self.sharded else 1) + activations) * GIBIBYTE


def stated(method: str = "LoRA", processes: int = 1) -> TrainMemory:
    return Stated(small_llama(), method_of(method), processes, sharded=processes > 1, on_gpu=True)


def defaults(batch: int, budget: int | None) -> Hyperparameters:
    return Hyperparameters(
        epochs=1,
        learning_rate=1e-4,
        batch_size=batch,
        max_sequence_length=2048,
        seed=1,
        total_steps=10,
        save_every_steps=10,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        max_batch_tokens=budget,
    )


def planned(
    available: int | None,
    *,
    method: str = "LoRA",
    batch: int = 8,
    tokens: int = 1000,
    budget: int | None = None,
    **requested: Any,
) -> MemoryPlan:
    """The plan for batches of 8 rows and devices with this many GiB."""
    checkpointing = requested.get("gradient_checkpointing") or False
    return plan_memory(
        stated(method),
        defaults(batch, budget).model_copy(update={"gradient_checkpointing": checkpointing}),
        RequestedHyperparameters(**requested),
        max_row_tokens=tokens,
        available=None if available is None else available * GIBIBYTE,
    )


def settings(plan: MemoryPlan) -> tuple[int | None, bool]:
    used = plan.hyperparameters
    assert used.batch_size == 8
    return used.max_batch_rows, used.gradient_checkpointing


@pytest.mark.parametrize(
    ("available", "verdict", "expected"),
    [
        (None, "Unknown", (None, False)),
        (101, "Fits", (None, False)),
        (100, "Fits", (4, False)),
        (60, "Fits", (4, False)),
        (30, "Fits", (1, False)),
        (20, "Fits", (1, True)),
        (14, "Tight", (1, True)),
        (12, "Tight", (1, True)),
        (11, "TooLarge", (1, True)),
    ],
)
def test_batches_are_halved_and_then_activations_are_recomputed_until_a_step_fits(
    available: int | None, verdict: str, expected: tuple[int | None, bool]
) -> None:
    plan = planned(available)

    assert (plan.verdict, settings(plan)) == (verdict, expected)


def test_what_was_changed_is_said_with_the_memory_that_it_saves() -> None:
    assert planned(101).chosen == ()
    assert planned(20).chosen == (
        "batches of 1 row: 8 rows would need 90 GiB per device",
        "gradient checkpointing: without it, a device would need 20 GiB",
    )


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (200, (16_384, False)),  # 16,000 tokens in a step: 170 GiB
        (102, (8_192, False)),  # 91 GiB
        (100, (7_168, False)),
        (70, (5_120, False)),
        (50, (3_072, False)),
        (30, (5_120, True)),  # recomputing 5,120 tokens needs less than 2,048 without
        (15, (1_024, True)),
        (14, (1_000, True)),
    ],
)
def test_the_largest_token_budget_that_fits_is_found_with_few_measurements(
    available: int, expected: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: set[StepShape] = set()
    peak_bytes = Stated.peak_bytes

    def recorded(memory: Stated, shape: StepShape) -> int:
        measured.add(shape)
        return peak_bytes(memory, shape)

    monkeypatch.setattr(Stated, "peak_bytes", recorded)

    used = planned(available, batch=16, budget=16_384).hyperparameters

    assert (used.max_batch_tokens, used.gradient_checkpointing) == expected
    assert used.batch_size == 16
    assert len(measured) <= 9  # of 32 budgets, and the chosen one without recomputing


def test_a_token_budget_of_a_user_without_checkpointing_shrinks_further() -> None:
    plan = planned(23, batch=16, budget=16_384, gradient_checkpointing=False)

    assert (plan.hyperparameters.max_batch_tokens, plan.verdict) == (1_024, "Fits")
    assert plan.chosen == (
        "optimizer steps of 16 rows: 8 would not fill the devices",
        "batches of up to 1024 tokens: up to 16384 tokens would need 170 GiB per device",
    )


def test_a_batch_size_of_the_user_is_divided_as_a_default_one() -> None:
    assert settings(planned(60, batch_size=8)) == settings(planned(60))
    assert planned(200, batch=16, budget=16_384, batch_size=16).chosen == ()


def test_checkpointing_that_the_user_switched_off_stays_off_although_train_may_need_it() -> None:
    kept = planned(14, gradient_checkpointing=False)

    assert (settings(kept), kept.verdict) == ((1, False), "Tight")
    assert planned(11, gradient_checkpointing=False).verdict == "TooLarge"


@pytest.mark.parametrize(
    ("method", "available", "tokens", "expected"),
    [
        ("LoRA", 11, 1000, "LoRA needs 13 GiB per device of 11, with batches of 1 row of 1000 tokens"),
        ("LoRA", 13, 1000, "; QLoRA needs 11, or 2 devices with LoRA sharded need 8. Create"),
        ("LoRA", 14, 4800, "; maxSequenceLength 600 needs 11. Create"),
        (
            "Full",
            30,
            1000,
            "; LoRA needs 13, or QLoRA needs 11, or 2 devices with Full sharded need 23. Create",
        ),
        ("DPO", 11, 1000, "; 2 devices with DPO with LoRA sharded need 8. Create"),
        (
            "DPO",
            13,
            1000,
            "; DPO with QLoRA needs 11, or 2 devices with DPO with LoRA sharded need 8. Create",
        ),
        ("DPO", 3, 1000, "; nothing that the trainer can change would fit. Create"),
    ],
)
def test_a_refusal_names_what_would_fit(method: str, available: int, tokens: int, expected: str) -> None:
    plan = planned(available, method=method, tokens=tokens)

    assert expected in predicted_out_of_memory(stated(method), plan, available * GIBIBYTE).message


def test_dpo_of_a_model_of_8b_fits_a_card_of_24_gb_with_qlora() -> None:
    """The reference model is the same base with the adapter switched off, so it takes no memory."""
    available = CARDS["NVIDIA-GeForce-RTX-4090"].memory_bytes
    memory = TrainMemory(
        build_empty_model(SHAPES["8B"]()), method_of("DPO with QLoRA"), 1, sharded=False, on_gpu=True
    )
    recomputing = RequestedHyperparameters(gradient_checkpointing=True)
    smallest = defaults(1, None).model_copy(update={"gradient_checkpointing": True})

    plan = plan_memory(memory, smallest, recomputing, max_row_tokens=2048, available=available)

    assert plan.verdict == "Fits"
    assert plan.peak_bytes == pytest.approx(8.1 * GIBIBYTE, rel=0.02)
    assert plan.peak_bytes < FITS * available


def test_preflight_predicts_what_training_takes_on_a_known_device(bench: Workbench) -> None:
    on_cpu = bench.preflight()
    on_gpu = bench.preflight(device=H100)

    predicted = on_gpu.prediction
    assert predicted is not None
    assert (predicted.verdict, predicted.device_memory_available_bytes) == ("Fits", 80 * GIBIBYTE)
    assert (predicted.mfu, predicted.mfu_assumed, predicted.chosen) == (0.35, True, ())
    assert predicted.seconds_low is not None
    assert predicted.seconds_high is not None
    assert 0 < predicted.seconds_low < predicted.seconds_high
    assert on_cpu.prediction is not None
    assert (on_cpu.prediction.verdict, on_cpu.prediction.seconds_low) == ("Unknown", None)
    assert on_gpu.hyperparameters.max_batch_tokens == 16_384
    assert on_gpu.hyperparameters == on_cpu.hyperparameters.model_copy(
        update={"max_batch_tokens": 16_384, "max_batch_rows": None}
    )


def test_preflight_predicts_the_weights_that_evaluation_loads(bench: Workbench) -> None:
    stored = sum(path.stat().st_size for path in tiny().glob("*.safetensors"))

    def weights(method: str) -> int | None:
        predicted = bench.preflight(device=H100, method=method_of(method)).prediction
        return None if predicted is None else predicted.weights_bytes

    assert weights("LoRA") == pytest.approx(stored, rel=0.02)
    in_four_bits = weights("QLoRA")
    assert in_four_bits is not None
    assert in_four_bits < 0.4 * stored


def test_preflight_refuses_what_cannot_fit_unless_the_user_wants_a_warning_only(bench: Workbench) -> None:
    tiny_card = DeviceFacts(memory_bytes=1 << 20)

    settings: dict[str, Any] = {
        "device": tiny_card,
        "hyperparameters": {"batch_size": 1, "gradient_checkpointing": True},
    }

    failure = bench.preflight_failure(**settings)
    result = bench.preflight(**settings, on_predicted_out_of_memory="Warn")

    assert (failure.reason, failure.exit_code) == (FailureReason.PREDICTED_OUT_OF_MEMORY, ExitCode.BAD_CONFIG)
    assert "GiB per device of 0.00098" in failure.message
    assert result.prediction is not None
    assert result.prediction.verdict == "TooLarge"
    assert result.hyperparameters.gradient_checkpointing


def test_a_card_that_cannot_train_is_refused_before_anything_is_read(bench: Workbench) -> None:
    failure = bench.preflight_failure(device=DeviceFacts(product="Tesla-V100-SXM2-32GB"))

    assert failure.reason is FailureReason.UNSUPPORTED_DEVICE
    assert failure.message.startswith("V100 has the compute capability 7.0, and training needs 8.0 or newer")


def test_a_model_that_cannot_be_predicted_trains_without_a_prediction_and_with_a_warning(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any, **__: Any) -> MemoryPlan:
        raise NotImplementedError

    monkeypatch.setattr(prediction, "plan_memory", unsupported)

    result = bench.preflight(device=H100)

    assert result.prediction is None
    assert result.warnings == (prediction.NOT_PREDICTED,)
    assert result.hyperparameters.batch_size == 8


def test_the_bytes_of_a_quantized_model_follow_the_formula() -> None:
    sizes = ModelSizes.of(small_llama(), small_llama().config)
    layers = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert (sizes.quantized, sizes.largest_quantized) == (layers, 64 * 128)
    assert quantized_difference(sizes, 2) == round(layers * (0.5 + 1 / 64 + 1 / 4096 - 2)) + 64 * 128 * 2


def test_a_model_that_bitsandbytes_quantizes_has_the_size_of_the_formula() -> None:
    quantized = trainable_model(tiny(), Method(type="QLoRA"), torch.device("cpu"))
    layers: list[Any] = [module for module in quantized.modules() if isinstance(module, Linear4bit)]
    states = [layer.weight.quant_state for layer in layers]
    stored = sum(layer.weight.nbytes for layer in layers) + sum(
        state.absmax.nbytes + state.state2.absmax.nbytes for state in states
    )
    config = AutoConfig.from_pretrained(tiny())
    sizes = ModelSizes.of(build_empty_model(config), config)

    assert stored == pytest.approx(
        quantized_difference(sizes, 2) + 2 * (sizes.quantized - sizes.largest_quantized), rel=0.01
    )


def test_the_share_of_a_process_of_sharded_weights_follows_the_formula() -> None:
    sizes = ModelSizes(
        parameters=900, quantized=0, largest_quantized=0, largest_layer=100, outside_layers=300
    )
    share = (900 * 16 + 50 * 4) // 4
    gathered = 2 * (100 + 100 + 300) + 4 * 100
    frozen = sharded_bytes(sizes, trained=0, frozen_bytes=200, processes=4, gathered_itemsize=2)
    assert frozen == 50 + 2 * (100 + 100 + 300)
    assert (
        sharded_bytes(sizes, trained=900, frozen_bytes=200, processes=4, gathered_itemsize=2)
        == share + gathered
    )


def test_more_devices_need_less_memory_per_device_only_where_weights_are_sharded() -> None:
    model = small_llama()
    shape = StepShape(rows=1, length=64, accumulates=False)
    full = TrainMemory(model, Method(type="Full"), 1, sharded=False, on_gpu=True)
    adapter = TrainMemory(model, Method(), 1, sharded=False, on_gpu=True)

    alone = full.peak_bytes(shape)
    two, four = (full.with_shards(number).peak_bytes(shape) for number in (2, 4))
    assert alone > two > four
    trained = adapter.step(shape).trained_bytes
    assert replace(adapter, processes=2).peak_bytes(shape) == adapter.peak_bytes(shape) + trained
    sharded = full.with_shards(2)
    assert full.state_bytes(full.step(shape)) == sharded.state_bytes(sharded.step(shape))
    assert replace(full, processes=2).peak_bytes(shape) > alone


def test_sharded_weights_leave_the_activations_of_a_process_as_they_are() -> None:
    alone = TrainMemory(small_llama(), Method(type="Full"), 1, sharded=False, on_gpu=True)
    sharded = alone.with_shards(4)
    short, long = (StepShape(rows=1, length=length, accumulates=False) for length in (256, 512))

    def growth(memory: TrainMemory) -> int:
        return memory.peak_bytes(long) - memory.peak_bytes(short)

    assert growth(sharded) == pytest.approx(growth(alone), rel=0.2)
    weights = sum(parameter.numel() for parameter in alone.model.parameters())
    assert sharded.peak_bytes(short) > 16 * weights / 4 + growth(sharded)


def test_the_operations_of_a_run_grow_with_tokens_and_with_the_square_of_each_row() -> None:
    step = StepMeasure({}, 0, 0, matmul_flops=6000, attention_flops=8000)
    shape = StepShape(rows=2, length=10)

    # 300 per token; attention: half of 40 per token and earlier token
    assert run_flops(step, shape, [10, 5], epochs=3) == 3 * (300 * 15 + 20 * (100 + 25))


def test_full_training_takes_six_operations_per_weight_and_token() -> None:
    model = small_llama(tie_word_embeddings=False)
    shape = StepShape(rows=1, length=64, accumulates=False)
    multiplied = sum(parameter.numel() for parameter in model.parameters()) - 512 * 64  # without embeddings

    step = TrainMemory(model, Method(type="Full"), 1, sharded=False, on_gpu=True).step(shape)

    assert step.matmul_flops == pytest.approx(6 * multiplied * 64, rel=0.02)


def test_the_duration_is_a_range_unless_the_utilization_was_measured() -> None:
    device = DeviceFacts(peak_teraflops=100)
    assert seconds_range(1e16, device, 2, None) == pytest.approx((50 / 0.45, 50 / 0.25))
    assert seconds_range(1e16, device, 2, 0.5) == (100, 100)
    # Short rows of a small model: the kernels of each batch are launched one after the other.
    assert seconds_range(1e12, device, 2, 0.5, operations=1_000_000) == pytest.approx((5, 8))
    assert seconds_range(1e16, DeviceFacts(memory_bytes=1), 2, 0.5) is None
    assert seconds_range(1e16, None, 2, 0.5) is None


@pytest.mark.parametrize(
    ("limit", "batches"),
    [
        ({"max_batch_rows": 3}, 2),
        ({"max_batch_rows": 4}, 1),
        ({"max_batch_tokens": 100}, 1),
        ({"max_batch_tokens": 64}, 2),
    ],
)
def test_each_batch_of_each_step_launches_its_operations(limit: dict[str, Any], batches: int) -> None:
    """A process has 4 of the 8 rows of a step, of 20 tokens on average."""
    used = Hyperparameters(
        epochs=1, learning_rate=1e-5, batch_size=8, max_sequence_length=64, seed=0, total_steps=10,
        warmup_ratio=0, scheduler="Constant", weight_decay=0, save_every_steps=10, processes=2, **limit,
    )  # fmt: skip
    step = StepMeasure({}, 0, 0, 0, 0, operations=1000)
    assert launches(step, used, [10, 30]) == 10 * batches * 1000


@pytest.mark.parametrize(
    ("nodes", "sharded", "expected"), [(1, False, 62), (2, False, 62), (1, True, 62), (2, True, 43)]
)
def test_the_pods_of_a_run_share_the_copy_of_a_sharded_state(
    nodes: int, sharded: bool, expected: int
) -> None:
    memory = replace(stated("Full"), processes=8 * nodes, sharded=sharded)

    assert prediction.host_bytes(memory, 8, nodes, 38 * GIBIBYTE) == expected * GIBIBYTE


def test_a_pod_on_cpus_needs_what_its_processes_need() -> None:
    memory = replace(stated("Full"), on_gpu=False)

    assert prediction.host_bytes(memory, 2, 1, 38 * GIBIBYTE) == 2 * GIBIBYTE
