# SPDX-License-Identifier: Apache-2.0
"""Writes a whole model as `save_pretrained` does, but gathers its tensors one after another.

Of a sharded model no process ever holds more than one tensor in full. If the files have other names or shapes
than the model, as those of mixtures of experts, it holds the tensors of one layer.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from finetune_trainer.train.parallel.shards import reshard
from finetune_trainer.train.parallel.tensor_files import Rows, file_order, write_tensors

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
        if _described(self.stored) == _described(shapes):
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
            described.update(_described(stored))
        if described == _described(self.stored):
            return made
        return dict.fromkeys(self.stored, tuple(shapes))


def _described(tensors: Tensors) -> dict[str, Any]:
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
