# SPDX-License-Identifier: Apache-2.0
"""Base models with random weights, in the shapes of small Llamas."""

from pathlib import Path
from typing import Final

from tools.models import llama
from tools.models.folder import cached

SIZES: Final = ("1B", "3B")


def random_model(size: str) -> Path:
    """The folder of the model: bfloat16 safetensors, and the tokenizer of the tiny model."""
    return cached(
        f"random-{size.lower()}",
        Path(llama.__file__).read_bytes(),
        lambda target: llama.write_random(target, llama.LLAMA[size]),
    )
