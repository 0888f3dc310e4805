# SPDX-License-Identifier: Apache-2.0
"""Collects the state that training resumes from: weights, optimizer, position and random numbers."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from finetune_trainer.distributed.process_group import Group
from finetune_trainer.store.file_writing import ByteSink, WriteFile, written
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.parallel.shards import (
    GROUPS,
    collect_shards,
    group_settings,
    require_scheduler,
    unwrap_optimizer,
)
from finetune_trainer.train.parallel.tensor_files import Rows, write_tensors
from finetune_trainer.train.state_folders import TRAINER_STATE, random_numbers_name, shard_name
from finetune_trainer.train.states.resume_states import StateSnapshot
from finetune_trainer.train.states.weights import adapter_weights

T = TypeVar("T")

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
MODEL_WEIGHTS: Final = "model.safetensors"


def collect_whole(trainer: Trainer, model: Trainable, group: Group) -> StateSnapshot:
    """Collect a state whose files do not depend on the number of processes. Collective.

    On a CPU the weights of a whole model are not copied: a copy would need the memory of model and optimizer
    once more, and the processors that would write it are those that train.
    """
    numbers = group.gather(_random_numbers(trainer))
    is_copy = isinstance(model, PeftModel) or model.device.type != "cpu"
    if not group.is_main_process:
        return StateSnapshot({}, is_copy)
    keep: Callable[[Any], Any] = to_cpu if is_copy else _identity
    files = dict(_adapter_files(model) if isinstance(model, PeftModel) else _model_files(model, keep))
    files[OPTIMIZER_NAME] = _serialize(keep(unwrap_optimizer(trainer).state_dict()))
    for rank, content in enumerate(numbers):
        files[random_numbers_name(rank, group.size)] = written(content)
    return StateSnapshot({**files, **_position(trainer)}, is_copy)


def collect_sharded(trainer: Trainer, model: torch.nn.Module, group: Group, *, copies: bool) -> StateSnapshot:
    """Collect this process's part of a state: its rows of weights and optimizer state. Not collective.

    With `copies`, training may continue while the files are written.
    """
    optimizer = unwrap_optimizer(trainer)
    tensors = collect_shards(model, optimizer, with_whole=group.is_main_process)
    if copies:
        tensors = {name: Rows(to_cpu(rows.data), rows.start) for name, rows in tensors.items()}

    def write_shard(file: ByteSink) -> None:
        write_tensors(file, tensors, is_shard=True)

    files: dict[str, WriteFile] = {
        shard_name(group): write_shard,
        random_numbers_name(group.rank, group.size): written(_random_numbers(trainer)),
    }
    if group.is_main_process:
        files[GROUPS] = _text(group_settings(model, optimizer))
        files.update(_position(trainer))
    return StateSnapshot(files, is_copy=copies, is_sharded=True)


def to_cpu(value: T) -> T:
    """A copy of nested containers with all tensors on the CPU."""
    result: Any = value
    if isinstance(value, Tensor):
        result = value.detach().to("cpu", copy=True)
    elif isinstance(value, Mapping):
        result = {key: to_cpu(each) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(to_cpu(each) for each in value)
    return result  # type: ignore[no-any-return]


def _identity(value: T) -> T:
    return value


def _adapter_files(model: PeftModel) -> Mapping[str, WriteFile]:
    """The files from which PEFT loads an adapter."""
    copied = {name: Rows(to_cpu(tensor).contiguous()) for name, tensor in adapter_weights(model).items()}
    config = json.dumps(model.active_peft_config.to_dict(), sort_keys=True, default=sorted)
    return {ADAPTER_WEIGHTS: lambda file: write_tensors(file, copied), ADAPTER_CONFIG: _text(config)}


def _model_files(model: torch.nn.Module, keep: Callable[[Tensor], Tensor]) -> Mapping[str, WriteFile]:
    weights: dict[str, Rows] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights have two names
            seen.add(id(tensor))
            weights[name] = Rows(keep(tensor.detach()))
    return {MODEL_WEIGHTS: lambda file: write_tensors(file, weights)}


def _position(trainer: Trainer) -> Mapping[str, WriteFile]:
    """Files of the schedule, and of the trainer's position in the data."""
    scheduler = require_scheduler(trainer)
    state = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True) + "\n"
    return {SCHEDULER_NAME: _serialize(copy.deepcopy(scheduler.state_dict())), TRAINER_STATE: _text(state)}


def _random_numbers(trainer: Trainer) -> bytes:
    """The state of this process's random number generators, as the Trainer stores it."""
    with TemporaryDirectory() as folder:
        trainer._save_rng_state(folder)
        (path,) = Path(folder).iterdir()
        return path.read_bytes()


def _serialize(value: object) -> WriteFile:
    return lambda file: torch.save(value, file)  # type: ignore[arg-type]  # it only writes


def _text(content: str) -> WriteFile:
    return written(content.encode())
