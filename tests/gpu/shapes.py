# SPDX-License-Identifier: Apache-2.0
"""Models with random weights, made from a config: no download, and every size that a GPU holds."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tools.models.llama import LLAMA, write_random

SHAPES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "tiny": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        "0.7B": {
            "hidden_size": 1536,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "vocab_size": 32_000,
        },
        "8B": LLAMA["8B"],
    }
)
"""Numbers of the configs, named as in them."""
CONTEXT: Final = 131_072


def make_model(name: str, folder: Path, device: str) -> None:
    """Write the model's safetensors in bfloat16, and the tokenizer of the tiny model, into `folder`.

    The weights are drawn on `device` from a fixed seed: on a CPU 8B take minutes.
    """
    write_random(folder, {**SHAPES[name], "max_position_embeddings": CONTEXT}, device)
