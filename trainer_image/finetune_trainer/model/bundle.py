# SPDX-License-Identifier: Apache-2.0
"""The files next to published weights: adapter settings, tokenizer, chat template, stop tokens.

With them, other software uses the weights as they were trained. An adapter loads with PEFT from its folder
and the base model alone; its tokenizer, chat template and generation config load with transformers from the
same folder. A whole model has the same files. For a base model that is served without adapters, chat template
and stop tokens are read from its own files.

The container that fetches models has little memory and the store's credentials. So this module does not
import transformers, parses no vocabulary, and does not run the chat template, which is code of the model's
author.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import LoRA
from finetune_trainer.contract.vocabulary import FailureReason, join_names
from finetune_trainer.rooted_open import copy_file
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.supplied_templates import supplied_template

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
TOKENIZER_FILES: Final = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
PROCESSOR_FILES: Final = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Without these files vLLM does not load a model that also reads images."""
MODEL_CONFIG: Final = "config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
GENERATION_CONFIG: Final = "generation_config.json"


@dataclass(frozen=True)
class Bundle:
    """Tokenizer, chat template and stop tokens of a Checkpoint."""

    base: Path
    """Folder of the base model, whose tokenizer files are copied."""
    chat_template: str
    """The template of the training rows: the model's own, or the one that the trainer supplied."""
    stop_ids: tuple[int, ...]
    """Ids of the tokens that end an answer."""
    tokenizer_class: str | None = None
    """Class of the tokenizer, if transformers would choose another one without the model's config.json."""

    def write(self, folder: Path) -> None:
        """Write the files into `folder`, over files of the same names. Raises OSError."""
        for name in TOKENIZER_FILES:
            if (self.base / name).exists():
                (folder / name).unlink(missing_ok=True)
                copy_file(self.base / name, folder / name, self.base)
        if self.tokenizer_class is not None and not (folder / MODEL_CONFIG).exists():
            settings = read_settings(folder / TOKENIZER_CONFIG)
            write_settings(folder / TOKENIZER_CONFIG, settings | {"tokenizer_class": self.tokenizer_class})
        (folder / CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8")
        settings = read_settings(self.base / GENERATION_CONFIG)
        write_settings(folder / GENERATION_CONFIG, settings | {"eos_token_id": list(self.stop_ids)})


def require_bundle(folder: Path, name: str) -> None:
    """Check that the weights in `folder` have the chat template and the stop tokens of their training.

    `name` is that of the Checkpoint. Raises StageFailure (ARTIFACT_CORRUPT) that names the missing files.
    """
    missing = [file for file in (CHAT_TEMPLATE, GENERATION_CONFIG) if not (folder / file).is_file()]
    if missing:
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT,
            f"{name} has no {join_names(missing)}, so its prompts and the end of its answers are unknown; "
            "train"
            " it again",
        )


def read_chat_template(folder: Path) -> str:
    """The chat template of the weights in `folder`. Raises OSError, also if they bring none."""
    return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")


def read_stop_ids(folder: Path) -> frozenset[int]:
    """The stop tokens of the weights in `folder`; empty if they bring none. Raises OSError, ValueError."""
    ids = read_settings(folder / GENERATION_CONFIG).get("eos_token_id")
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it does not exist. Raises OSError, ValueError."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write a JSON file with sorted keys and members of sets, so that equal settings give equal bytes."""
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)
    path.write_text(text + "\n", encoding="utf-8")


ENDS_OF_TURN: Final = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<|end_of_text|>")
"""Tokens that end a turn in chat templates of common models."""
MAX_ADDED_TOKENS_BYTES: Final = 16 << 20
"""Part of tokenizer.json that is parsed for its added tokens; Gemma's 6,400 take 1 MiB."""


class BundleUnknown(Exception):
    """The base model's files do not say how an answer ends."""


def read_base_bundle(base: Path) -> Bundle:
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


ADAPTER_CONFIG: Final = "adapter_config.json"


class AdapterConfig(BaseModel):
    """The fields that are read from PEFT's `adapter_config.json`."""

    base_model_name_or_path: str | None = None
    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] | None = None
    bias: str = "none"
    rank_pattern: dict[str, int] = {}

    @property
    def max_rank(self) -> int:
        """Highest rank of an adapted module."""
        return max((self.r, *self.rank_pattern.values()))

    @property
    def lora(self) -> LoRA:
        """The LoRA settings; `target_modules` lists all adapted modules, sorted."""
        return LoRA(
            r=self.r,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            target_modules=tuple(sorted(self.target_modules)),
            rslora=self.use_rslora,
            dora=self.use_dora,
        )


def read_adapter(folder: Path) -> AdapterConfig:
    """Read the adapter in `folder`. Raises StageFailure (ARTIFACT_CORRUPT) if there is none, OSError."""
    path = folder / ADAPTER_CONFIG
    try:
        return AdapterConfig.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT, f"{path} is not the configuration of an adapter: {error}"
        ) from error


def check_base_model(folder: Path, base_model: Digest) -> None:
    """Refuse an adapter that was trained from another base model: it might load, but generate nonsense.

    The trainer writes the base model's digest where PEFT writes its name. Nothing is compared if the name is
    not a digest, because other software wrote it, or if the folder holds a whole model instead of an adapter.
    Raises StageFailure: BASE_MODEL_MISMATCH with both digests, ARTIFACT_CORRUPT.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    trained_from = read_adapter(folder).base_model_name_or_path or ""
    if trained_from.startswith("sha256:") and trained_from != base_model:
        raise StageFailure(
            FailureReason.BASE_MODEL_MISMATCH,
            f"the adapter {folder.name} was trained from base model {trained_from}, but this endpoint serves"
            f" {base_model}: set spec.baseModel.digest to the adapter's base model, or serve it from another"
            " InferenceDeployment",
        )
