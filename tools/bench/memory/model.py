# SPDX-License-Identifier: Apache-2.0
"""A base model of 300 million parameters with random weights, in the shape of Llama."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tools.models.folder import cached
from tools.models.llama import write_random

SHAPE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 512,
    }
)


def random_model() -> Path:
    """The folder of the model: bfloat16 safetensors, and the tokenizer of the tiny model."""
    return cached("random-300m", Path(__file__).read_bytes(), lambda target: write_random(target, SHAPE))
