# SPDX-License-Identifier: Apache-2.0
"""Small models for the serving tests: a Llama and a Gemma 3 with a short window, with random adapters."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
)

from finetune_trainer.model.bundle import read_base_bundle
from tools.models import tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "tickets.v1": {},
    "summaries": {"use_rslora": True},
    "letters": {"use_dora": True},
}
ADAPTERS = tuple(VARIANTS)


def make_llama(root: Path) -> None:
    """`llama`, with full attention, and its adapters as `llama-<name>`."""
    shutil.copytree(tiny(), root / "llama")
    add_adapters(AutoModelForCausalLM.from_pretrained(root / "llama"), root, "llama")


def make_endless(root: Path) -> None:
    """Make `endless`, a Llama that never generates a stop token, with a context that no test fills."""
    shutil.copytree(tiny(), root / "endless")
    model = AutoModelForCausalLM.from_pretrained(root / "endless")
    # The logit of the stop token is then 0, and some of 512 random logits are greater.
    model.lm_head.weight.data[model.config.eos_token_id] = 0
    model.config.max_position_embeddings = 1_000_000
    model.save_pretrained(root / "endless")


def make_gemma(root: Path) -> None:
    """`gemma`, one of whose two layers sees 8 tokens only, and its adapters as `gemma-<name>`."""
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    torch.manual_seed(1)
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=512,
            initializer_range=0.2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(root / "gemma")
    tokenizer.save_pretrained(root / "gemma")
    add_adapters(model, root, "gemma")


def add_adapters(base: PreTrainedModel, root: Path, kind: str) -> None:
    """Save a random adapter for each name, as a run publishes it, and far enough from zero to change every
    answer.
    """
    bundle = read_base_bundle(root / kind)
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **variant)
        peft_model = get_peft_model(base, config)
        for parameter_name, parameter in peft_model.named_parameters():
            if "lora_magnitude" in parameter_name:
                parameter.data *= torch.empty_like(parameter).uniform_(0.5, 2)
            elif "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        peft_model.save_pretrained(str(root / f"{kind}-{name}"))
        bundle.write(root / f"{kind}-{name}")
        peft_model.unload()


class Oracle:
    """Answers of plain transformers and PEFT: one request at a time, no padding, `generate`."""

    def __init__(self, root: Path, kind: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(root / kind)
        base = AutoModelForCausalLM.from_pretrained(root / kind)
        model = PeftModel.from_pretrained(base, str(root / f"{kind}-{ADAPTERS[0]}"), adapter_name="0")
        for number, name in enumerate(ADAPTERS[1:], 1):
            model.load_adapter(str(root / f"{kind}-{name}"), adapter_name=str(number))
        self._model: Any = model.eval()

    def chat(self, question: str) -> list[int]:
        """The ids of a chat with one question, up to where the answer starts."""
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        return cast(list[int], ids)

    def generate(self, model: str, prompt: list[int], max_tokens: int) -> list[int]:
        """The ids of the greedy answer, the stop token included."""
        inputs = torch.tensor([prompt])
        arguments = {
            "input_ids": inputs,
            "attention_mask": torch.ones_like(inputs),
            "max_new_tokens": max_tokens,
            "do_sample": False,
        }
        with self._serving(model):
            output = self._model.generate(**arguments)
        ids: list[int] = output[0, len(prompt) :].tolist()
        return ids

    def lead(self, model: str, prompt: list[int], answer: list[int]) -> float:
        """Return the smallest margin of the logit of a greedy token over the runner-up in the answer."""
        best, second = self._logits(model, prompt, answer).topk(2).values.unbind(-1)
        return float((best - second).min())

    def logprobs(self, model: str, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Return the log-probabilities at each place of the answer, of shape (answer, vocabulary)."""
        return self._logits(model, prompt, answer).log_softmax(-1)

    def _logits(self, model: str, prompt: list[int], answer: list[int]) -> torch.Tensor:
        with self._serving(model), torch.no_grad():
            logits: torch.Tensor = self._model(input_ids=torch.tensor([prompt + answer])).logits
        return logits[0, len(prompt) - 1 : -1].float()

    def text(self, ids: list[int]) -> str:
        """The text of an answer."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @contextmanager
    def _serving(self, model: str) -> Iterator[None]:
        if model == "base":
            with self._model.disable_adapter():
                yield
        else:
            self._model.set_adapter(str(ADAPTERS.index(model)))
            yield
