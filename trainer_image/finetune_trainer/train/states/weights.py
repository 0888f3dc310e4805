# SPDX-License-Identifier: Apache-2.0
"""Writes weights as files in the form of published checkpoints: equal weights give equal bytes.

The other files of a checkpoint are its `Bundle`, which is added when the weights are published.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.beneath import copy_file
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.vocabulary import FULL_MODEL, CheckpointType
from finetune_trainer.model.bundle import (
    ADAPTER_CONFIG,
    GENERATION_CONFIG,
    MODEL_CONFIG,
    PROCESSOR_FILES,
    TOKENIZER_CONFIG,
    Bundle,
    read_settings,
    write_settings,
)
from finetune_trainer.tokens.chat_template import stop_token_ids
from finetune_trainer.train.modelsetup import Trainable
from finetune_trainer.train.parallel.shards import is_fully_sharded
from finetune_trainer.train.states.adapterweights import adapter_weights
from finetune_trainer.train.states.modelfiles import write_model

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


class TrainingWeights(Protocol):
    """The weights of a model in training, which rank 0 writes."""

    @property
    def type(self) -> CheckpointType:
        """The type of checkpoint that is written."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the written weights; None for that of the model."""
        ...

    def write(self, folder: Path) -> None:
        """Write the current weights as they are published. Collective with `contribute`. Raises OSError."""
        ...

    def contribute(self) -> None:
        """Send what rank 0 lacks, in the other processes, while rank 0 writes."""
        ...


def training_weights(model: Trainable, base_model: Digest, base: Path) -> TrainingWeights:
    """The weights of `model`, which is trained from the base model in the folder `base`."""
    return AdapterWeights(model, base_model) if isinstance(model, PeftModel) else ModelWeights(model, base)


@dataclass(frozen=True)
class AdapterWeights:
    """The weights of an adapter, which every process has."""

    model: PeftModel
    base_model: Digest
    type: CheckpointType = "Adapter"
    dtype: torch.dtype | None = None

    def write(self, folder: Path) -> None:
        _write_adapter(self.model, self.base_model, folder)

    def contribute(self) -> None:
        pass


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a model, in the dtype of the base model in the folder `base`."""

    model: PreTrainedModel
    base: Path
    type: CheckpointType = FULL_MODEL

    def write(self, folder: Path) -> None:
        write_model(self.model, self.dtype, folder)
        for name in (MODEL_CONFIG, *PROCESSOR_FILES):
            if (self.base / name).exists():
                copy_file(self.base / name, folder / name, self.base)

    def contribute(self) -> None:
        if is_fully_sharded(self.model):
            write_model(self.model, self.dtype, None)

    @property
    def dtype(self) -> torch.dtype | None:
        config = AutoConfig.from_pretrained(self.base, trust_remote_code=False, local_files_only=True)
        dtype: torch.dtype | None = config.dtype
        return dtype


def _write_adapter(model: PeftModel, base_model: Digest, folder: Path) -> None:
    """Write `adapter_model.safetensors`, and `adapter_config.json` with the digest of the base model."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in sorted(adapter_weights(model).items())
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.active_peft_config.to_dict()
    config["base_model_name_or_path"] = base_model
    config["inference_mode"] = True
    write_settings(folder / ADAPTER_CONFIG, config)
