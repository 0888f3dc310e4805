"""Full training with the weights sharded across the processes of a run: PyTorch's FSDP2.

Each process holds a shard of every layer with its gradients and optimizer state, and gathers a layer only
while it is computed. States and Checkpoints are unsharded, as those of one process.
"""

from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from typing_extensions import override

from finetune_trainer.train.parallel.shards import load_optimizer, load_weights
from finetune_trainer.train.states.pendingsave import StateSnapshot
from finetune_trainer.train.states.snapshot import collect_sharded
from finetune_trainer.train.trainer import CompletionTrainer

CONFIG: Final = {"version": 2, "reshard_after_forward": True}
"""In the form that transformers reads; the model's class names the layers to shard."""
FULL_ON_CPU: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Full tensors in the CPU memory of rank 0, and nothing in the other processes."""
COPIES_ON_CPU = False
"""Whether a state is copied before it is written also on a CPU, for tests."""
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
    def collect_state(self) -> StateSnapshot:
        # On a CPU a copy would need the memory of model and optimizer once more.
        copies = self.args.device.type != "cpu" or COPIES_ON_CPU
        return collect_sharded(self, self._trained, self._group, copies=copies)

    @override
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        load_weights(self._trained, Path(resume_from_checkpoint))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self, self._trained, Path(checkpoint))


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """Map each name in the state dict to the first name of the same tensor; tied weights have two names."""
    tensors: dict[str, Any] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensors[name]), name) for name in model.state_dict()}
