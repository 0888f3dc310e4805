# SPDX-License-Identifier: Apache-2.0
"""The memory and the operations of a step that preflight predicts, compared with real steps."""

from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import Gemma3TextConfig, PretrainedConfig

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.preflight.estimate import fake_tensors
from finetune_trainer.preflight.estimate.fake_step import (
    Precision,
    StepMeasure,
    StepShape,
    measure_at_depth,
    measure_step,
)
from tests.methods import NAMES, method_of
from tests.trainer.architectures import ARCHITECTURES, tiny_config
from tests.trainer.gpuwrapping import as_a_gpu_trains
from tools.sizing.accuracy import measured_peak, small

ON_CPU = Precision(torch.float32, autocast=False)
ON_GPU = Precision(torch.bfloat16, autocast=True)


QUICK = {("LoRA", False, True), ("Full", True, False)}
"""Cases of `make test`: a method, checkpointing, and whether it trains as on a GPU."""


@pytest.mark.parametrize(
    ("method", "checkpointing", "on_gpu"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.full)
        for case in product(("LoRA", "Full", "DPO", "KTO", "ORPO"), (False, True), (False, True))
    ],
)
def test_the_predicted_memory_is_within_ten_percent_of_the_peak_of_a_real_step(
    method: str, checkpointing: bool, on_gpu: bool, tmp_path: Path
) -> None:
    how = method_of(method)
    shape = StepShape(rows=2, length=640, checkpointing=checkpointing)
    stored_dtype = torch.bfloat16 if on_gpu else torch.float32
    weights = torch.float32 if method == "Full" else stored_dtype
    with as_a_gpu_trains() if on_gpu else nullcontext():
        measured = measured_peak(how, shape, stored_dtype, tmp_path)

    predicted = measure_step(small(), how, shape, Precision(weights, autocast=on_gpu)).peak_bytes

    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("method", ["LoRA", "Full", pytest.param("DPO", marks=pytest.mark.full)])
def test_two_shallow_models_give_the_figures_of_a_deep_one(method: str) -> None:
    shape = StepShape(rows=1, length=128, checkpointing=method == "DPO")

    def measure(config: PretrainedConfig) -> StepMeasure:
        return measure_step(config, method_of(method, lora=LoRA(r=4)), shape, ON_CPU)

    deep, extrapolated = measure(small(5)), measure_at_depth(small(5), measure)

    assert extrapolated.peak_bytes == pytest.approx(deep.peak_bytes, rel=0.001)
    for name in ("frozen_bytes", "trained_bytes", "matmul_flops", "attention_flops"):
        assert getattr(extrapolated, name) == getattr(deep, name)
    # The optimizer and the clipping of gradients divide their tensors into groups.
    assert extrapolated.operations == pytest.approx(deep.operations, rel=0.02)


@pytest.mark.full
def test_a_pattern_of_layer_types_is_repeated() -> None:
    config = Gemma3TextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=9,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=32,
        vocab_size=512,
    )
    shape = StepShape(rows=1, length=128)

    def measure(config: PretrainedConfig) -> StepMeasure:
        return measure_step(config, Method(), shape, ON_CPU)

    deep, extrapolated = measure(config), measure_at_depth(config, measure)

    assert extrapolated.peak_bytes == pytest.approx(deep.peak_bytes, rel=0.01)
    assert extrapolated.matmul_flops == deep.matmul_flops


QUICK_ARCHITECTURES = {("qwen3_moe", "LoRA"), ("falcon_h1", "DPO")}
"""Those of `make test`: experts, and state spaces beside attention."""


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(*case, marks=() if case in QUICK_ARCHITECTURES else pytest.mark.full)
        for case in product(ARCHITECTURES, NAMES)
    ],
)
def test_a_step_of_every_architecture_can_be_measured(name: str, method: str) -> None:
    shape = StepShape(rows=2, length=16, checkpointing=True)

    measured = measure_step(tiny_config(name), method_of(method), shape, ON_GPU)

    assert measured.peak_bytes > measured.frozen_bytes + measured.trained_bytes
    assert measured.matmul_flops > 0


@pytest.mark.parametrize(("method", "products"), [("Full", 3), ("LoRA", 2)])
def test_the_products_of_the_experts_that_a_token_has_are_counted(method: str, products: int) -> None:
    """Forward, the gradient of the input, and of Full that of the weights."""
    shape = StepShape(rows=2, length=16, checkpointing=False)
    config = tiny_config("qwen3_moe")

    def flops(experts: int) -> int:
        config.num_experts_per_tok = experts
        return measure_step(config, method_of(method), shape, ON_GPU).matmul_flops

    added = 2
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    expected = products * 2 * shape.rows * shape.length * added * expert * config.num_hidden_layers
    assert flops(1 + added) - flops(1) == expected


def test_dropout_keeps_a_byte_per_number_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU keeps a number of the dtype of its input, which is bfloat16 under autocast."""
    shape = StepShape(rows=4, length=512, checkpointing=False)
    config = small(4)
    method = method_of("LoRA", lora=LoRA(dropout=0.1))
    as_a_gpu = measure_step(config, method, shape, ON_GPU).peak_bytes

    monkeypatch.setattr(fake_tensors, "dropout_of_a_gpu", torch.nn.functional.dropout)
    as_a_cpu = measure_step(config, method, shape, ON_GPU).peak_bytes

    widths = 6 * config.hidden_size + config.intermediate_size  # of the inputs of all linear layers
    adapted = config.num_hidden_layers * shape.rows * shape.length * widths
    assert as_a_cpu - as_a_gpu == pytest.approx(adapted, rel=0.1)
