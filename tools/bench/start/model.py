"""Base models with random weights, in the shapes of Llama 3.2."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tools.models import tiny
from tools.models.folder import cached

SHAPES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
        },
        "3B": {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
        },
    }
)


def random_model(size: str) -> Path:
    """The folder of the model: bfloat16 safetensors, and the tokenizer of the tiny model."""
    return cached(f"random-{size.lower()}", Path(__file__).read_bytes(), lambda target: _make(size, target))


def _make(size: str, target: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny(), target, dirs_exist_ok=True)
    config = LlamaConfig(
        vocab_size=128_256, num_key_value_heads=8, tie_word_embeddings=True, dtype="bfloat16", **SHAPES[size]
    )
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = LlamaForCausalLM._from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.bfloat16
        )
    model.save_pretrained(target)
