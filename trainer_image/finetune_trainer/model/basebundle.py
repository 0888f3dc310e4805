# SPDX-License-Identifier: Apache-2.0
"""Chat template and stop tokens of a base model that is served without adapters, read from its files.

The container that fetches models has little memory and the store's credentials. So this module does not
import transformers, parses no vocabulary, and does not run the chat template, which is code of the model's
author.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from finetune_trainer.model.bundle import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Bundle,
    read_settings,
)
from finetune_trainer.tokens.suppliedtemplates import supplied_template

ENDS_OF_TURN: Final = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<|end_of_text|>")
"""Tokens that end a turn in chat templates of common models."""
MAX_ADDED_TOKENS_BYTES: Final = 16 << 20
"""Part of tokenizer.json that is parsed for its added tokens; Gemma's 6,400 take 1 MiB."""


class BundleUnknown(Exception):
    """The base model's files do not say how an answer ends."""


def base_bundle(base: Path) -> Bundle:
    """The bundle of the model in `base`.

    Stop tokens are those that the model configures. If its template contains none of them, as in base models
    with the template of their chat model, they include the token that is known to end a turn.
    Raises BundleUnknown, OSError, ValueError if a file is not JSON.
    """
    settings = read_settings(base / TOKENIZER_CONFIG)
    with (base / TOKENIZER).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        template = _own_template(base, settings) or supplied_template(
            lambda token: text.find(json.dumps(token).encode()) >= 0
        )
        tokens = _added_tokens(text)
    eos = _content(settings.get("eos_token"))
    stop_ids = {
        *_ids(read_settings(base / GENERATION_CONFIG).get("eos_token_id")),
        *_ids(tokens.get(eos or "")),
    }
    stop_tokens = [token for token, number in tokens.items() if number in stop_ids]
    if "eos_token" not in template and not any(token in template for token in stop_tokens):
        ends = {tokens[token] for token in ENDS_OF_TURN if token in template and token in tokens}
        if not ends:
            raise BundleUnknown("the base model configures no stop token that its chat template contains")
        stop_ids |= ends
    if not stop_ids:
        raise BundleUnknown("the base model configures no stop token")
    return Bundle(base, template, tuple(sorted(stop_ids)))


def _own_template(base: Path, settings: Mapping[str, Any]) -> str | None:
    if (base / CHAT_TEMPLATE).exists():
        return (base / CHAT_TEMPLATE).read_text(encoding="utf-8")
    own = settings.get("chat_template")
    if isinstance(own, list):
        own = next((each["template"] for each in own if each.get("name") == "default"), None)
    return own if isinstance(own, str) else None


def _added_tokens(tokenizer: mmap.mmap) -> dict[str, int]:
    """Ids of the added tokens, which include all control tokens, by their text."""
    start = tokenizer.find(b"[", tokenizer.find(b'"added_tokens"'))
    head = tokenizer[start : start + MAX_ADDED_TOKENS_BYTES].decode("utf-8", errors="ignore")
    added, _ = json.JSONDecoder().raw_decode(head)
    return {entry["content"]: entry["id"] for entry in added}


def _content(token: Any) -> str | None:
    """The text of a token in tokenizer_config.json."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _ids(value: Any) -> Iterator[int]:
    yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
