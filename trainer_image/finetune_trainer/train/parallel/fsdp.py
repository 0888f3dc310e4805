"""All weights of a model, divided among the processes of a run: PyTorch's FSDP2.

Each process keeps a part of every layer with its gradients and its optimizer's state, and has a layer whole
only while that is computed. States and Checkpoints are whole, as of one process.
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
"""As transformers takes it; layers are those that the model's class names as such."""
GATHERED: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Whole tensors in the memory of rank 0's CPU, and nothing in the other processes."""
WHOLE: Final = StateDictOptions(full_state_dict=True)
MIXED: Final = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
"""Gradients are summed in float32, as those of DDP and of one process are; accelerate would in bfloat16."""


def is_fully_sharded(model: torch.nn.Module) -> bool:
    """Whether its weights are divided among processes."""
    return isinstance(model, FSDPModule)


def gather_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """All weights on rank 0, tied ones as one tensor; empty for the other processes. Collective."""
    state: dict[str, Any] = get_model_state_dict(model, options=GATHERED)
    return {name: state[first] for name, first in _first_names(model).items() if first in state}


class FullyShardedTrainer(CompletionTrainer):
    """Reads and writes states that know nothing of the division."""

    settings = MappingProxyType({"fsdp": True, "fsdp_config": CONFIG})

    @override
    def create_accelerator_and_postprocess(self) -> None:
        if self.args.mixed_precision == "bf16":
            self.args.fsdp_plugin_args["mixed_precision_policy"] = MIXED
        super().create_accelerator_and_postprocess()

    @override
    def collect_state(self) -> Callable[[Path], None]:
        state = get_optimizer_state_dict(self._trained, self._own_optimizer, options=GATHERED)
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
        set_model_state_dict(self._trained, weights, options=WHOLE)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self._trained, self._own_optimizer, state, options=WHOLE)
        self._scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """Without what accelerate puts around it."""
        wrapped: Any = self.optimizer
        optimizer: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
        return optimizer

    @property
    def _scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """Made before anything is saved or loaded."""
        if self.lr_scheduler is None:
            raise ValueError("the Trainer has no scheduler yet")
        return self.lr_scheduler


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """Each name in the state, and the first name of the same tensor: tied weights have two."""
    tensors: dict[str, Any] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensors[name]), name) for name in model.state_dict()}
