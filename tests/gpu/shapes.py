"""Models with random weights, made from a config: no download, and every size that a GPU holds."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.models import tiny


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a Llama, named as in its config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False


SHAPES: Final = {
    "tiny": Shape(64, 128, 2, 4, 2, 512),
    "0.7B": Shape(1536, 4096, 24, 16, 8, 32_000),
    "8B": Shape(4096, 14_336, 32, 32, 8, 128_256),
}
CONTEXT: Final = 131_072


def make_model(name: str, folder: Path, device: str) -> None:
    """Write the model's safetensors in bfloat16, and the tokenizer of the tiny model, into `folder`.

    The weights are drawn on `device` from a fixed seed: on a CPU 8B take minutes.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    for file in tiny().iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(file, folder)
