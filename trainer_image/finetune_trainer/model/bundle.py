# SPDX-License-Identifier: Apache-2.0
"""The files next to published weights with which other software uses them as they were trained.

An adapter loads with PEFT from its folder and the base model alone; its tokenizer, chat template and
generation config load with transformers from the same folder. A whole model has the same files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_trainer.beneath import copy_file
from finetune_trainer.contract.vocabulary import FailureReason, listed
from finetune_trainer.runtime.failure import StageFailure

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
            f"{name} has no {listed(missing)}, so its prompts and the end of its answers are unknown; train"
            " it again",
        )


def own_chat_template(folder: Path) -> str:
    """The chat template of the weights in `folder`. Raises OSError, also if they bring none."""
    return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")


def own_stop_ids(folder: Path) -> frozenset[int]:
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
