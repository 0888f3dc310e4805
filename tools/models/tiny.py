# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama with random weights, for tests: everything real about it but its knowledge.

Two layers of width 64 memorize a handful of rows within seconds on a CPU.
"""

from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT
from tools.models.folder import cached

CORPUS: Final = ROOT / "LICENSE"
VOCABULARY: Final = 512
CONTEXT: Final = 512
SPECIAL_TOKENS: Final = ["<pad>", "<s>", "</s>", "<system>", "<user>", "<assistant>"]
CHAT_TEMPLATE: Final = (
    "<s>{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny() -> Path:
    """The folder of the model: float32 safetensors below 2 MB, tokenizer, chat template; always the same."""
    return cached("tiny", Path(__file__).read_bytes() + CORPUS.read_bytes(), _make)


def _make(target: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text.train([str(CORPUS)], trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=text,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            # Ten times the usual width: with it logits are decided, and training only an adapter
            # brings the loss to zero although the output head stays random.
            initializer_range=0.2,
            max_position_embeddings=CONTEXT,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
