# SPDX-License-Identifier: Apache-2.0
"""Shapes of models for the table, with the numbers of their published configs."""

from collections.abc import Callable, Mapping
from typing import Final

from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from tools.models.llama import LLAMA


def _llama(size: str) -> LlamaConfig:
    return LlamaConfig(dtype="bfloat16", **LLAMA[size])


SHAPES: Final[Mapping[str, Callable[[], PretrainedConfig]]] = {
    "270M": lambda: Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32_768,
        dtype="bfloat16",
    ),
    "1B": lambda: _llama("1B"),
    "8B": lambda: _llama("8B"),
    "32B": lambda: Qwen3Config(
        vocab_size=151_936,
        hidden_size=5120,
        intermediate_size=25_600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
    "70B": lambda: _llama("70B"),
}
"""Gemma 3 270M, Llama 3.2 1B, Llama 3.1 8B, Qwen3 32B and Llama 3.3 70B."""
