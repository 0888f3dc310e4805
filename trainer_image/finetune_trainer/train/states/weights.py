"""Writes weights as files in the form of published checkpoints: equal weights give equal bytes.

The other files of a checkpoint are its `Bundle`, which is added when the weights are published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.beneath import copy_file
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.vocabulary import FULL_MODEL, CheckpointType
from finetune_trainer.model.adapter import ADAPTER_CONFIG
from finetune_trainer.model.bundle import (
    GENERATION_CONFIG,
    MODEL_CONFIG,
    PROCESSOR_FILES,
    TOKENIZER_CONFIG,
    Bundle,
    read_settings,
    write_settings,
)
from finetune_trainer.tokens.chattemplate import stop_token_ids
from finetune_trainer.train.modelsetup import Trainable
from finetune_trainer.train.parallel.fsdp import gather_weights, is_fully_sharded

GENERIC_TOKENIZER: Final = "PreTrainedTokenizerFast"
"""Name that transformers 4 and 5 understand for a tokenizer without a class of its own."""


def bundle_of(base: Path, tokenizer: PreTrainedTokenizerBase) -> Bundle:
    """The bundle of weights that were trained with `tokenizer`, which is that of the base model in `base`."""
    generation = GenerationConfig.from_dict(read_settings(base / GENERATION_CONFIG))
    loaded = type(tokenizer).__name__
    stated = read_settings(base / TOKENIZER_CONFIG).get("tokenizer_class")
    return Bundle(
        base=base,
        chat_template=tokenizer.get_chat_template(),
        stop_ids=tuple(stop_token_ids(tokenizer, generation)),
        tokenizer_class=None if _class_name(stated) == _class_name(loaded) else _class_name(loaded),
    )


def _class_name(name: str | None) -> str:
    """The tokenizer class that transformers loads for a name in a tokenizer_config.json."""
    name = (name or "").removesuffix("Fast")
    return GENERIC_TOKENIZER if name in ("", "PreTrainedTokenizer", "TokenizersBackend") else name


class TrainingWeights:
    """The weights of a model in training."""

    def __init__(self, model: Trainable, base_model: Digest, base: Path) -> None:
        self._model = model
        self._base_model = base_model
        self._base = base

    def collect(self) -> "CollectedWeights":
        """Collect the current weights, which rank 0 must write before the next step. Collective."""
        if isinstance(self._model, PeftModel):
            return CollectedAdapter(self._model, self._base_model)
        state = gather_weights(self._model) if is_fully_sharded(self._model) else self._model.state_dict()
        return CollectedModel(self._model, state, self._base)


class CollectedWeights(Protocol):
    """Complete weights in one process."""

    @property
    def type(self) -> CheckpointType:
        """The type of checkpoint that is written."""
        ...

    def write(self, folder: Path) -> None:
        """Write the weights in the form in which they are published."""
        ...


@dataclass(frozen=True)
class CollectedAdapter:
    """The weights of an adapter."""

    model: PeftModel
    base_model: Digest
    type: CheckpointType = "Adapter"

    def write(self, folder: Path) -> None:
        _write_adapter(self.model, self.base_model, folder)


@dataclass(frozen=True)
class CollectedModel:
    """All weights of a model, in the order and with the names of its state dict."""

    model: PreTrainedModel
    state: Mapping[str, Tensor]
    base: Path
    type: CheckpointType = FULL_MODEL

    def write(self, folder: Path) -> None:
        _write_full(self.model, self.state, self.base, folder)


def _write_adapter(model: PeftModel, base_model: Digest, folder: Path) -> None:
    """Write `adapter_model.safetensors`, and `adapter_config.json` with the digest of the base model."""
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.active_peft_config.to_dict()
    config["base_model_name_or_path"] = base_model
    config["inference_mode"] = True
    write_settings(folder / ADAPTER_CONFIG, config)


def _write_full(model: PreTrainedModel, state: Mapping[str, Tensor], base: Path, folder: Path) -> None:
    """Write a whole model in the dtype of the base model in `base`."""
    dtype = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True).dtype
    # One copy for all names of a tensor: transformers recognizes tied weights by their memory.
    copies: dict[int, Tensor] = {}
    weights = {
        name: copies.setdefault(tensor.data_ptr(), tensor.to(dtype) if tensor.is_floating_point() else tensor)
        for name, tensor in state.items()
    }
    model.save_pretrained(folder, state_dict=weights)
    # The architecture is that of the base model; transformers would add its version and settings.
    for name in (MODEL_CONFIG, *PROCESSOR_FILES):
        if (base / name).exists():
            (folder / name).unlink(missing_ok=True)
            copy_file(base / name, folder / name, base)
