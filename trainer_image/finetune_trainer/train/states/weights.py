# SPDX-License-Identifier: Apache-2.0
"""Writes weights in training as files of a published checkpoint: equal weights give equal bytes.

The other files of a checkpoint are its `Bundle`, which is added when the weights are published. The probe
records what weights predict when they are written, while they are in memory.

A whole model is written as `save_pretrained` does, but its tensors are gathered one after another, so of a
sharded model no process ever holds more than one tensor in full. If the files have other names or shapes than
the model, as those of mixtures of experts, it holds the tensors of one layer.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

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
from finetune_trainer.model.probe import PromptIds, compute_probe
from finetune_trainer.model.probe_record import ProbeRecord, write_record
from finetune_trainer.rooted_open import copy_file
from finetune_trainer.tokens.chat_template import stop_token_ids
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.parallel.shards import is_fully_sharded, reshard
from finetune_trainer.train.parallel.tensor_files import Rows, file_order, write_tensors


def adapter_weights(model: PeftModel) -> Mapping[str, Tensor]:
    """The trained weights of an adapter, with the names that PEFT stores; not copies. Not collective."""
    # PEFT would take the state of the whole model, and compare weights that are sharded across processes.
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    weights: Mapping[str, Tensor] = get_peft_model_state_dict(model, trained, save_embedding_layers=False)
    return weights


MAX_FILE_SIZE: Final = "50GB"
"""The limit of `save_pretrained`. Larger models have several files and an index."""
FILE_NAME: Final = "model{suffix}.safetensors"
INDEX: Final = "model.safetensors.index.json"
LAYER: Final = re.compile(r"\D*\.\d+\.")
"""The beginning of a tensor's name up to the number of its layer."""

Tensors = Mapping[str, Tensor]


def write_model(
    model: PreTrainedModel,
    dtype: torch.dtype | None,
    folder: Path | None,
    *,
    max_file_size: str = MAX_FILE_SIZE,
) -> None:
    """Write the weights into `folder`; None in a process that only contributes its rows.

    Floating-point tensors get `dtype`; None for their own. Collective if the model is sharded.
    Raises OSError.
    """
    gathered = _GatheredTensors(model, dtype)
    files = split_torch_state_dict_into_shards(
        dict(gathered.stored), filename_pattern=FILE_NAME, max_shard_size=max_file_size
    )
    for name, stored in files.filename_to_tensors.items():
        tensors = {each: Rows(gathered.stored[each]) for each in stored}
        if folder is None:
            for each in file_order(tensors):
                gathered.read(each)
        else:
            with (folder / name).open("wb") as file:
                write_tensors(file, tensors, read=gathered.read)
    if files.is_sharded and folder is not None:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **files.metadata},
            "weight_map": files.tensor_to_filename,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _GatheredTensors:
    """The tensors of a model's files, converted from those of the model in groups. The last group is kept."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        self._model = model
        self._dtype = dtype
        self._tensors = _saved_tensors(model)
        shapes = {
            name: torch.empty(tensor.shape, dtype=self._dtype_of(tensor), device="meta")
            for name, tensor in self._tensors.items()
        }
        self.stored: Tensors = self._as_stored(shapes)
        """The tensors of the files, on the meta device."""
        self._groups = self._groups_of(shapes)
        self._read_group: Iterable[str] = ()
        self._read: Tensors = {}

    def read(self, name: str) -> Tensor:
        """The tensor `name` of a file. All processes read the same names in the same order."""
        group = self._groups[name]
        if group is not self._read_group:
            self._read = {}  # before the next group is gathered
            self._read_group = group
            self._read = self._as_stored({each: self._gather(each) for each in group})
        return self._read[name]

    def _gather(self, name: str) -> Tensor:
        tensor = self._tensors[name].detach()
        tensor = tensor.to(self._dtype_of(tensor))
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        """The dtype of a tensor of the model in the files."""
        return self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype

    def _as_stored(self, tensors: Tensors) -> Tensors:
        stored: dict[str, Tensor] = revert_weight_conversion(self._model, dict(tensors))
        return stored

    def _groups_of(self, shapes: Tensors) -> Mapping[str, Iterable[str]]:
        """For each tensor of the files, the tensors of the model that it is made of."""
        if _describe_shapes(self.stored) == _describe_shapes(shapes):
            return {name: (name,) for name in shapes}
        groups: dict[str, list[str]] = {}
        for name in shapes:
            layer = LAYER.match(name)
            groups.setdefault(layer[0] if layer else name, []).append(name)
        made: dict[str, Iterable[str]] = {}
        described: dict[str, Any] = {}
        for group in groups.values():
            stored = self._as_stored({name: shapes[name] for name in group})
            made.update(dict.fromkeys(stored, group))
            described.update(_describe_shapes(stored))
        if described == _describe_shapes(self.stored):
            return made
        return dict.fromkeys(self.stored, tuple(shapes))


def _describe_shapes(tensors: Tensors) -> dict[str, Any]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _saved_tensors(model: PreTrainedModel) -> Tensors:
    """The tensors that `save_pretrained` saves, in its order; tied ones by their first name."""
    reshard(model)
    ignored: Iterable[str] = model._keys_to_ignore_on_save or ()
    seen: set[int] = set()
    saved: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in ignored and id(tensor) not in seen:
            seen.add(id(tensor))
            saved[name] = tensor
    return saved


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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbedWeights:
    """Weights that are written with their probe. All processes of a sharded model compute it together."""

    weights: TrainingWeights
    model: Trainable
    prompts: PromptIds
    """Token ids; empty to record no probe."""
    pad_token_id: int
    quantized: bool
    """Whether the base model is in 4 bits."""

    @property
    def type(self) -> CheckpointType:
        return self.weights.type

    @property
    def dtype(self) -> torch.dtype | None:
        return self.weights.dtype

    def write(self, folder: Path) -> None:
        """Write the weights, and their probe unless their predictions are not finite."""
        probe = self._measure()
        self.weights.write(folder)
        if probe is not None:
            write_record(probe, folder)
        elif self.prompts:
            logger.warning("the weights have no probe: their predictions are not finite")

    def contribute(self) -> None:
        if any(isinstance(module, FSDPModule) for module in self.model.modules()):
            self._measure()
        self.weights.contribute()

    def _measure(self) -> ProbeRecord | None:
        if not self.prompts:
            return None
        record = compute_probe(
            self.model,
            self.prompts,
            self.pad_token_id,
            stored_dtype=self.weights.dtype,
            quantized=self.quantized,
        )
        reshard(self.model)
        return record
