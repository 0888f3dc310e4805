# SPDX-License-Identifier: Apache-2.0
"""DoRA with constant factors gives the logits of PEFT, which computes the factors in every pass."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune_trainer.model.dora import fix_magnitudes


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
        )
    )


def gpt2() -> PreTrainedModel:
    """Its linear layers have biases, and transposed weights."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2))


@pytest.mark.parametrize("base", [llama, gpt2])
@pytest.mark.parametrize("rslora", [False, True])
def test_nothing_changes_but_that_rows_of_several_adapters_share_a_batch(base: type, *, rslora: bool) -> None:
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_dora=True,
        use_rslora=rslora,
    )
    model = PeftModel(base(), config, "first").eval()
    model.add_adapter("second", config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
        elif "magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.5, 2)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 64, (1, 9))
    adapters = ("first", "second")
    expected = {}
    with torch.inference_mode():
        for adapter in adapters:
            model.set_adapter(adapter)
            expected[adapter] = model(input_ids=ids).logits
        with model.disable_adapter():
            expected["__base__"] = model(input_ids=ids).logits

    for adapter in adapters:
        fix_magnitudes(model, adapter)

    with torch.inference_mode():
        model.set_adapter("first")
        torch.testing.assert_close(model(input_ids=ids).logits, expected["first"], rtol=1e-4, atol=1e-4)
        rows = ["second", "__base__", "first"]
        mixed = model(input_ids=ids.repeat(3, 1), adapter_names=rows).logits
    for row, adapter in enumerate(rows):
        torch.testing.assert_close(mixed[row], expected[adapter][0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected["first"], expected["second"], atol=1e-2)
