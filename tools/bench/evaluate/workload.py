# SPDX-License-Identifier: Apache-2.0
"""The rows of both programs, and the base model in float32, in which rounding changes no answer."""

from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.evaluate.examples import Example, encode_examples
from finetune_trainer.model.loading import load_base
from finetune_trainer.tokens.chat_template import load_tokenizer
from tools.bench.example_rows import example_rows

ROWS: Final = {"ticket-routing": 32, "brand-voice": 16}
"""Rows of each example that are answered."""
CONFIG: Final = EvaluateConfig(
    owner=Owner(kind="FineTuneJob", namespace="bench", name="bench", uid="bench"),
    run="bench",
    store=StoreConfig(uri="pvc://bench"),
    base_model=f"sha256:{0:064}",
    dataset=f"sha256:{0:064}",
    checkpoint=f"sha256:{0:064}",
    max_new_tokens=48,
)
"""Settings of a run, with shorter answers."""


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 and its tokenizer."""
    # With one thread, the processor time is the time on a machine that does nothing else.
    torch.set_num_threads(1)
    return load_base(folder, torch.float32, torch.device("cpu")), load_tokenizer(folder)


def examples(name: str, rows: int, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The first rows of an example, encoded."""
    return encode_examples(example_rows(name)[:rows], tokenizer, CONFIG.max_sequence_length, "test")
