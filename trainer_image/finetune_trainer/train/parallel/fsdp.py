"""Full training with the weights sharded across the processes of a run: PyTorch's FSDP2.

Each process holds a shard of every layer with its gradients and optimizer state, and gathers a layer only
while it is computed. States and Checkpoints are unsharded, as those of one process.
"""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from typing_extensions import override

from finetune_trainer.train.trainer import CompletionTrainer, collect_state

CONFIG: Final = {"version": 2, "reshard_after_forward": True}
"""In the form that transformers reads; the model's class names the layers to shard."""
FULL_ON_CPU: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Full tensors in the CPU memory of rank 0, and nothing in the other processes."""
FULL: Final = StateDictOptions(full_state_dict=True)
MIXED_PRECISION: Final = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
"""Sums gradients in float32, like DDP and a single process; accelerate would use bfloat16."""


def is_fully_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of `model` are sharded across processes."""
    return isinstance(model, FSDPModule)


def gather_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Gather all weights on rank 0, tied weights as one tensor; empty elsewhere. Collective."""
    state: dict[str, Any] = get_model_state_dict(model, options=FULL_ON_CPU)
    return {name: state[first] for name, first in _first_names(model).items() if first in state}


class FullyShardedTrainer(CompletionTrainer):
    """Reads and writes unsharded states."""

    settings = MappingProxyType({"fsdp": True, "fsdp_config": CONFIG})
    reduces_each_batch = True  # gradients that wait for the last batch are not sharded

    @override
    def create_accelerator_and_postprocess(self) -> None:
        if self.args.mixed_precision == "bf16":
            self.args.fsdp_plugin_args["mixed_precision_policy"] = MIXED_PRECISION
        super().create_accelerator_and_postprocess()

    @override
    def collect_state(self) -> Callable[[Path], None]:
        state = get_optimizer_state_dict(self._trained, self._own_optimizer, options=FULL_ON_CPU)
        scheduler = self._scheduler.state_dict()

        def write_optimizer(folder: Path) -> None:
            torch.save(state, folder / OPTIMIZER_NAME)
            torch.save(scheduler, folder / SCHEDULER_NAME)

        return collect_state(self, self._group, write_optimizer)

    @override
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        stored: dict[str, Tensor] = {}
        for file in Path(resume_from_checkpoint).glob("*.safetensors"):
            stored.update(load_file(file))
        weights: dict[str, Any] = {name: stored[first] for name, first in _first_names(self._trained).items()}
        set_model_state_dict(self._trained, weights, options=FULL)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self._trained, self._own_optimizer, state, options=FULL)
        self._scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without the wrapper of accelerate."""
        wrapped: Any = self.optimizer
        optimizer: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
        return optimizer

    @property
    def _scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler, which exists before anything is saved or loaded."""
        if self.lr_scheduler is None:
            raise ValueError("the Trainer has no scheduler yet")
        return self.lr_scheduler


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """Map each name in the state dict to the first name of the same tensor; tied weights have two names."""
    tensors: dict[str, Any] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensors[name]), name) for name in model.state_dict()}
