# SPDX-License-Identifier: Apache-2.0
"""Weights and optimizer state in shards (FSDP2): how a model is sharded, and its shards in a saved state.

transformers shards the model across the processes of a run while it loads the weights. A sharded state has
one file of tensors per process. The number of processes may differ when it is read, because each process
reads the rows that it needs, and nothing else.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from transformers import Trainer
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from finetune_trainer.model.device import mixes_precision
from finetune_trainer.model.loading import read_empty_model
from finetune_trainer.train.parallel.tensor_files import Rows, TensorFiles
from finetune_trainer.train.state_folders import is_sharded


def sharding_config(
    folder: Path, processes: int, device: torch.device, *, frozen: bool = False
) -> DistributedConfig:
    """The sharding of the base model in `folder`: the layers that its class names are units of their own.

    A unit is gathered while it is computed. With mixed precision it is gathered in bfloat16, and gradients
    are summed in float32, like those of DDP and of a single process. `frozen` weights keep their dtype.

    Raises StageFailure (BASE_MODEL_INVALID).
    """
    model = read_empty_model(folder)
    layers = set(model._no_split_modules or ())
    return DistributedConfig(
        fsdp_size=processes,
        # In addition to the plan of transformers, which names no layer of architectures like GPT-2.
        fsdp_plan={
            replace_layer_number_by_wildcard(path): "free_full_weight"
            for path, module in model.named_modules()
            if type(module).__name__ in layers
        },
        fsdp_mixed_precision=not frozen and mixes_precision(device),
    )


WEIGHTS: Final = "model."
OPTIMIZER: Final = "optimizer."
GROUPS: Final = "optimizer.json"
"""The optimizer's parameter groups: settings, and names of parameters."""
STEP: Final = "step"
PARAMETERS: Final = "params"


def is_fully_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of `model` are sharded across processes."""
    return isinstance(model, FSDPModule)


def local_rows(tensor: Tensor) -> Rows:
    """This process's rows of a tensor, as a view; all rows if it is not sharded."""
    if not isinstance(tensor, DTensor):
        return Rows(tensor.detach())
    (placement,), mesh = tensor.placements, tensor.device_mesh
    if not isinstance(placement, Shard) or placement.dim != 0:
        raise ValueError(f"a tensor is placed as {placement}, not in rows")
    rows = tensor.shape[0]
    # PyTorch shards like torch.chunk.
    start = min(mesh.get_local_rank() * -(-rows // mesh.size()), rows)
    return Rows(tensor.to_local().detach(), start)


def collect_shards(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, with_whole: bool
) -> dict[str, Rows]:
    """This process's rows of trained weights and optimizer state, as views.

    Tensors that are not sharded are equal in all processes; one process saves them: `with_whole`.
    """
    tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in trained_tensors(model).items()}
    for name, parameter in _optimized_parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return {
        name: rows
        for name, tensor in tensors.items()
        if with_whole or isinstance(tensor, DTensor)
        if (rows := local_rows(tensor)).data.numel()
    }


def trained_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, each by its first name."""
    reshard(model)
    stored = model.state_dict(keep_vars=True)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    return trained | {name: each for name, each in model.named_buffers() if name in stored}


def unwrap_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """The optimizer without the wrapper of accelerate."""
    wrapped: Any = trainer.optimizer
    optimizer: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
    return optimizer


def require_scheduler(trainer: Trainer) -> torch.optim.lr_scheduler.LRScheduler:
    """The scheduler, which exists before anything is saved or loaded."""
    if trainer.lr_scheduler is None:
        raise ValueError("the Trainer has no scheduler yet")
    return trainer.lr_scheduler


def reshard(model: torch.nn.Module) -> None:
    """Free gathered weights: after a pass without gradients a sharded model may still have some."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def group_settings(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """The optimizer's parameter groups as JSON: settings, and names of parameters."""
    names = [name for name, _ in _optimized_parameters(model, optimizer)]
    groups = []
    for group in optimizer.param_groups:
        count = len(group[PARAMETERS])
        groups.append({**group, PARAMETERS: names[:count]})
        names = names[count:]
    return json.dumps(groups)


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Read this process's rows of the trained weights in a state of either layout. Raises ValueError."""
    files = TensorFiles.below(folder)
    prefix = WEIGHTS if is_sharded(folder) else ""
    with torch.no_grad():
        for name, tensor in trained_tensors(model).items():
            files.read(f"{prefix}{name}", local_rows(tensor))


def load_optimizer(trainer: Trainer, model: torch.nn.Module, folder: Path) -> None:
    """Read this process's rows of the optimizer state, and the schedule. As `load_weights`."""
    optimizer, scheduler = unwrap_optimizer(trainer), require_scheduler(trainer)
    if is_sharded(folder):
        groups: list[dict[str, Any]] = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
        _read_shards(model, optimizer, TensorFiles.below(folder))
    else:
        groups = _read_whole(model, optimizer, folder / OPTIMIZER_NAME)
    for group, stored in zip(optimizer.param_groups, groups, strict=True):
        values = {name: value for name, value in stored.items() if name != PARAMETERS}
        group.update({name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))


def _read_shards(model: torch.nn.Module, optimizer: torch.optim.Optimizer, files: TensorFiles) -> None:
    keys: dict[str, list[str]] = {}
    for stored in files.names:
        if stored.startswith(OPTIMIZER):
            owner, _, key = stored.removeprefix(OPTIMIZER).rpartition(".")
            keys.setdefault(owner, []).append(key)
    for name, parameter in _optimized_parameters(model, optimizer):
        state = optimizer.state[parameter]
        for key in keys.get(name, ()):
            stored = f"{OPTIMIZER}{name}.{key}"
            state[key] = _empty(parameter, key, files.shape(stored), files.dtype(stored), optimizer)
            files.read(stored, local_rows(state[key]))


def _read_whole(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> list[dict[str, Any]]:
    """Read the state that `torch.save` wrote; with mmap, a process reads only its own rows."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    states: Mapping[Any, Mapping[str, Tensor]] = content["state"]
    for number, (name, parameter) in enumerate(_optimized_parameters(model, optimizer)):
        # A single process numbers the parameters.
        for key, value in states.get(name, states.get(number, {})).items():
            target = _empty(parameter, key, tuple(value.shape), value.dtype, optimizer)
            rows = local_rows(target)
            rows.data.copy_(value[rows.start : rows.stop] if value.ndim else value)
            optimizer.state[parameter][key] = target
    groups: list[dict[str, Any]] = content["param_groups"]
    return groups


def _empty(
    parameter: Tensor, key: str, shape: tuple[int, ...], dtype: torch.dtype, optimizer: torch.optim.Optimizer
) -> Tensor:
    """A tensor of an optimizer's state, in the place where the optimizer would create it."""
    if shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    group = optimizer.param_groups[0]
    on_device = key != STEP or group.get("fused") or group.get("capturable")
    return torch.empty(shape, dtype=dtype, device=parameter.device if on_device else "cpu")


def _optimized_parameters(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The optimizer's parameters in its order, with their names in the model."""
    reshard(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group[PARAMETERS]:
            yield names[id(parameter)], parameter
