# SPDX-License-Identifier: Apache-2.0
"""Shapes of published Llamas, and models of such shapes with random weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tools.models.tiny import tiny

TOKENIZER_FILES: Final = ("tokenizer", "special_tokens", "chat_template")
SHARED: Final = {"num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072}
LLAMA: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "1B": {
            **SHARED,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "tie_word_embeddings": True,
        },
        "3B": {
            **SHARED,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "tie_word_embeddings": True,
        },
        "8B": {
            **SHARED,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        "70B": {
            **SHARED,
            "hidden_size": 8192,
            "intermediate_size": 28_672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "tie_word_embeddings": False,
        },
    }
)
"""Numbers in the published configs of Llama 3.2 1B and 3B, Llama 3.1 8B and Llama 3.3 70B."""


def write_random(folder: Path, numbers: Mapping[str, Any], device: str = "cpu") -> None:
    """Write a Llama with these numbers in its config, in bfloat16 with the tokenizer of the tiny model.

    The weights are drawn on `device` from a fixed seed: on a CPU 8B take minutes.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for file in tiny().iterdir():
        if file.name.startswith(TOKENIZER_FILES):
            shutil.copy(file, folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(  # type: ignore[no-untyped-call]
            LlamaConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, **numbers), dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
