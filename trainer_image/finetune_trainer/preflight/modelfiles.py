# SPDX-License-Identifier: Apache-2.0
"""Choose the files of a base model among those of its folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from finetune_trainer.beneath import PathRefused
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.bundle import (
    ADAPTER_CONFIG,
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    MODEL_CONFIG,
    PROCESSOR_FILES,
    TOKENIZER,
    TOKENIZER_FILES,
)
from finetune_trainer.runtime.failure import StageFailure

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
REQUIRED: Final = (MODEL_CONFIG, TOKENIZER)
OPTIONAL: Final = (
    *TOKENIZER_FILES,
    *PROCESSOR_FILES,
    GENERATION_CONFIG,
    CHAT_TEMPLATE,
    "chat_template.json",
    "README.md",
)
"""Copied if present. Subfolders and other formats of the weights are not copied."""
LICENSE_NAMES: Final = ("license", "licence", "notice", "use_policy")
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


def invalid(uri: str, what: str) -> StageFailure:
    """Failure for a base model that cannot be trained."""
    return StageFailure(FailureReason.BASE_MODEL_INVALID, f"baseModel {uri}: {what}")


@contextmanager
def errors_named(uri: str) -> Iterator[None]:
    """Raise StageFailure (BASE_MODEL_INVALID) for files of the model that cannot be read."""
    try:
        yield
    except PathRefused as refusal:
        raise invalid(uri, str(refusal)) from refusal
    except OSError as error:
        raise invalid(uri, f"{error}; check that uid 65532 may read the files") from error


def absent(uri: str) -> StageFailure:
    """Failure for a base model that does not exist."""
    return StageFailure(
        FailureReason.BASE_MODEL_NOT_FOUND,
        f"baseModel {uri}: the folder does not exist; check the name of the claim and the path in it",
    )


def model_files(folder: Path, uri: str) -> tuple[str, ...]:
    """Names of the model's files in `folder`, sorted.

    Raises StageFailure: BASE_MODEL_NOT_FOUND; BASE_MODEL_INVALID if a file is missing, or the weights are not
    complete safetensors files. Raises OSError.
    """
    if not folder.is_dir():
        raise absent(uri)
    names = choose_files(folder, uri, {path.name for path in folder.iterdir() if path.is_file()})
    for name in names:
        _check_complete(folder / name, uri)
    return names


def choose_files(folder: Path, uri: str, present: set[str]) -> tuple[str, ...]:
    """Choose the model's files among those `present` at its source, sorted.

    `folder` must have the `metadata_files`. Raises StageFailure (BASE_MODEL_INVALID), OSError.
    """
    if ADAPTER_CONFIG in present and MODEL_CONFIG not in present:
        raise invalid(uri, "this is an adapter, not a complete model; name the model that it was trained on")
    weights = _weights(folder, uri, present)
    for name in REQUIRED:
        if name not in present:
            raise invalid(uri, f"{name} is missing; download the complete model again")
    return tuple(sorted({*weights, *metadata_files(present)}))


def metadata_files(present: set[str]) -> set[str]:
    """All files except the weights, including the index of the weights."""
    licenses = {name for name in present if name.lower().startswith(LICENSE_NAMES)}
    return present.intersection((*REQUIRED, *OPTIONAL, INDEX)) | licenses


def _weights(folder: Path, uri: str, present: set[str]) -> list[str]:
    if INDEX not in present:
        if SINGLE in present:
            return [SINGLE]
        pickled = sorted(name for name in present if name.endswith(PICKLED))
        if pickled:
            raise invalid(
                uri,
                f"its weights are pickled ({pickled[0]}), and loading them could run code; convert them"
                " with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
            )
        if any(name.endswith(".gguf") for name in present):
            raise invalid(
                uri, "its weights are in GGUF format, which cannot be trained; use the safetensors version"
            )
        raise invalid(uri, f"it has no weights, neither {SINGLE} nor {INDEX}; download the model again")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise invalid(uri, f"{INDEX} is damaged: {error}; download the model again") from error
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise invalid(
            uri, f"files named in {INDEX} are missing: {', '.join(missing[:10])}; download the model again"
        )
    return [*names, INDEX]


def _check_complete(path: Path, uri: str) -> None:
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise invalid(uri, f"{path.name} is damaged ({error}); download the model again") from error
