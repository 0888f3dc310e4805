# SPDX-License-Identifier: Apache-2.0
"""Every causal architecture in use: what an adapter adapts, what it leaves out, and that it gets gradients.

The table is `data/architectures.json`. `UPDATE_GOLDEN=1` writes it anew, for review.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from peft import PeftModel, get_peft_model

from finetune_trainer.contract.method import Method
from finetune_trainer.model.adapted_layers import freeze_encoders, stacked_experts
from finetune_trainer.model.completion_loss import completion_loss
from finetune_trainer.model.loading import build_empty_model
from finetune_trainer.preflight.method_checks import check_adapter
from finetune_trainer.tokens.batching import Padding, pack
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow
from finetune_trainer.train.model_setup import adapter_config
from tests.trainer.architectures import ARCHITECTURES, tiny_config, tiny_model

TABLE: Final = Path(__file__).parent / "data" / "architectures.json"
ROWS: Final = tuple(
    EncodedRow(list(range(3, 3 + length)), [*[IGNORE_INDEX] * 3, *range(6, 3 + length)]) for length in (7, 9)
)
LEARNING: Final = frozenset(
    (
        *("llama", "qwen3_moe", "qwen3_next", "gemma3", "gpt2", "gpt_oss", "bloom", "mamba2", "falcon_h1"),
        *("recurrent_gemma", "deepseek_v3", "phi3"),
    )
)
"""Architectures of `make test`: experts, state spaces, recurrence, fused projections, images, old layouts."""
BATCHES: Final = (pack(ROWS), Padding(0)(ROWS))


def without_gradient(model: torch.nn.Module) -> set[str]:
    """Names of trained parameters that a packed and a padded batch give no gradient."""
    model.train()
    for batch in BATCHES:
        # As on a GPU, where accelerate runs the forward pass under autocast.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = completion_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss)
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    }


def described(name: str) -> dict[str, Any]:
    """The row of the table for an architecture."""
    model = tiny_model(name)
    experts = stacked_experts(model)
    adapter = adapter_config(model, Method())
    return {
        "adapted": sorted(adapter.target_modules or ()),
        "excluded": adapter.exclude_modules,
        "experts left out": list(experts.names) if experts else [],
    }


def test_the_table_says_what_is_adapted_and_left_out() -> None:
    table = {name: described(name) for name in ARCHITECTURES}
    if os.environ.get("UPDATE_GOLDEN"):
        TABLE.write_text(json.dumps(table, indent=2) + "\n")

    assert table == json.loads(TABLE.read_text())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in LEARNING else pytest.mark.full) for name in ARCHITECTURES],
)
def test_every_weight_of_the_adapter_learns(name: str) -> None:
    model = tiny_model(name).to(torch.bfloat16)  # type: ignore[arg-type] # its stub knows one overload
    adapted = get_peft_model(model, adapter_config(model, Method()))
    assert isinstance(adapted, PeftModel)

    assert without_gradient(adapted) == set()


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_full_trains_the_text_decoder_and_its_head(name: str) -> None:
    model = tiny_model(name)
    freeze_encoders(model)

    assert without_gradient(model) == set()
    trained = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [path for path in trained if "vision" in path]
    assert any("embed_tokens" in path for path in trained)


@pytest.mark.parametrize("name", ["llama", "mixtral", "falcon_h1"])
def test_preflight_builds_the_adapter_and_warns_of_experts(name: str) -> None:
    warnings = check_adapter(build_empty_model(tiny_config(name)), Method(), "pvc://models/base")

    assert len(warnings) == (name == "mixtral")
    if warnings:
        assert "leaves out the experts (down_proj, gate_up_proj), which are 77%" in warnings[0]
        assert "in 4 bits" not in warnings[0]
        quantized = check_adapter(
            build_empty_model(tiny_config(name)), Method(type="QLoRA"), "pvc://models/base"
        )
        assert quantized[0].endswith("so that at most 23% of the parameters are in 4 bits")
