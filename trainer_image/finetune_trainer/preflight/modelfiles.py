"""Which files of a base model's folder are the model."""

import json
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.runtime.failure import StageFailure

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
NEEDED: Final = ("config.json", "tokenizer.json")
KEPT: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
)
"""Taken along where they are there; subfolders and other formats of the weights are not."""
LICENSE_NAMES: Final = ("license", "licence", "notice", "use_policy")
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


def invalid(uri: str, what: str) -> StageFailure:
    """The failure for a base model that cannot be trained."""
    return StageFailure(FailureReason.BASE_MODEL_INVALID, f"baseModel {uri}: {what}")


def absent(uri: str) -> StageFailure:
    """The failure for a base model that is not there."""
    return StageFailure(
        FailureReason.BASE_MODEL_NOT_FOUND,
        f"baseModel {uri}: there is no such folder; check the claim's name and the path in it",
    )


def model_files(folder: Path, uri: str) -> tuple[str, ...]:
    """Names of the model's files in `folder`, sorted.

    Raises StageFailure: BASE_MODEL_NOT_FOUND; BASE_MODEL_INVALID where something is missing, or the weights
    are no whole safetensors files. Raises OSError.
    """
    if not folder.is_dir():
        raise absent(uri)
    names = choose_files(folder, uri, {path.name for path in folder.iterdir() if path.is_file()})
    for name in names:
        _check_whole(folder / name, uri)
    return names


def choose_files(folder: Path, uri: str, present: set[str]) -> tuple[str, ...]:
    """Which of the files that are `present` somewhere are the model, sorted.

    `folder` has those of them that `described_by` names. Raises StageFailure (BASE_MODEL_INVALID), OSError.
    """
    if "adapter_config.json" in present and "config.json" not in present:
        raise invalid(uri, "this is an adapter, not a whole model; name the model that it was trained on")
    weights = _weights(folder, uri, present)
    for name in NEEDED:
        if name not in present:
            raise invalid(uri, f"{name} is missing; download the model again, completely")
    return tuple(sorted({*weights, *described_by(present)}))


def described_by(present: set[str]) -> set[str]:
    """Everything but the weights, and the list of these."""
    licenses = {name for name in present if name.lower().startswith(LICENSE_NAMES)}
    return present.intersection((*NEEDED, *KEPT, INDEX)) | licenses


def _weights(folder: Path, uri: str, present: set[str]) -> list[str]:
    if INDEX not in present:
        if SINGLE in present:
            return [SINGLE]
        pickled = sorted(name for name in present if name.endswith(PICKLED))
        if pickled:
            raise invalid(
                uri,
                f"its weights are pickled ({pickled[0]}), which can run code when they are read; convert them"
                " with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
            )
        if any(name.endswith(".gguf") for name in present):
            raise invalid(
                uri, "its weights are in GGUF, which cannot be trained; use the safetensors version"
            )
        raise invalid(uri, f"no weights: there is neither {SINGLE} nor {INDEX}")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise invalid(uri, f"{INDEX} is damaged: {error}; download the model again") from error
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise invalid(
            uri, f"{INDEX} names files that are missing: {', '.join(missing[:10])}; download the model again"
        )
    return [*names, INDEX]


def _check_whole(path: Path, uri: str) -> None:
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise invalid(uri, f"{path.name} is damaged ({error}); download the model again") from error
