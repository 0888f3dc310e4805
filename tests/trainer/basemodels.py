# SPDX-License-Identifier: Apache-2.0
"""Copies of the tiny model with other templates and tokens."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.tokens import chat_template
from finetune_trainer.tokens.supplied_templates import template_text
from tools.models import tiny


def whole(folder: Path) -> Path:
    return Path(shutil.copytree(tiny(), folder))


def without_template(folder: Path) -> Path:
    """A base model as published before its chat model: no template."""
    (whole(folder) / "chat_template.jinja").unlink()
    return folder


def with_the_template_of_a_chat_model(folder: Path) -> Path:
    """A base model with the template of its chat model, but no settings that name its end of turn."""
    with_special_tokens(folder, "<|im_start|>", "<|im_end|>")
    (folder / "chat_template.jinja").write_text(template_text("chatml"))
    return folder


def with_gemma_tokens(folder: Path) -> Path:
    """A base model without template whose answers end with a token that is not the end of the sequence."""
    return with_special_tokens(folder, "<start_of_turn>", "<end_of_turn>")


def with_special_tokens(folder: Path, *tokens: str, ordinary: tuple[str, ...] = ()) -> Path:
    tokenizer: Any = AutoTokenizer.from_pretrained(whole(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.add_tokens(list(ordinary))
    torch.manual_seed(3)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def with_reasoning(folder: Path) -> Path:
    """A model with the published template of a family whose answers begin with reasoning."""
    with_special_tokens(folder, "<|im_start|>", "<|im_end|>", ordinary=("<think>", "</think>"))
    shutil.copy(chat_template.trl_templates_folder() / "qwen3.jinja", folder / "chat_template.jinja")
    return folder
