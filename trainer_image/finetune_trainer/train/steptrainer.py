# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with whole optimizer steps as its batches."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from typing_extensions import override

from finetune_trainer.train.parallel.sharding import Steps


class StepTrainer(Trainer):
    """Computes the batches of an optimizer step, which the loader returns as a list.

    Their number differs from step to step, which transformers' own accumulation does not support.
    """

    loss_is_scaled_for_ga = True
    reduces_each_batch = False
    """Whether processes add up their gradients after each batch of a step, instead of once per step."""
    _gradient_norm: Any = None

    def step_loader(self, batches: Dataset[dict[str, Any]], steps: Steps) -> DataLoader[Any]:
        """The loader of `steps`; `batches` collates each of their batches."""
        return DataLoader(
            batches,
            batch_sampler=steps,
            collate_fn=list,
            pin_memory=self.args.dataloader_pin_memory,
        )

    @override
    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute all batches of a step; processes exchange gradients at the end."""
        loss = torch.zeros((), device=self.args.device)
        for left, batch in zip(range(len(inputs) - 1, -1, -1), inputs, strict=True):
            waits = left > 0 and not self.reduces_each_batch
            # The Trainer averages the gradients of an adapter over a sharded base model when this is set.
            self.accelerator.gradient_state._set_sync_gradients(not waits)
            with self.accelerator.no_sync(model) if waits else nullcontext():
                loss += super().training_step(model, batch, num_items_in_batch)
            if left:
                self.control = self.callback_handler.on_substep_end(self.args, self.state, self.control)
        return loss

    @override
    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Any], device: torch.device
    ) -> Tensor | int | None:
        return self.count_items([batch for step in batch_samples for batch in step], device)

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Number of labelled tokens of a step in all processes; `batches` are those of this process."""
        return super()._get_num_items_in_batch(batches, device)

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nothing reads the estimate, which walks over all weights for each batch."""
        return 0

    @override
    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        self._gradient_norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return self._gradient_norm

    def gradient_norm(self) -> float:
        """Norm of all gradients of the current optimizer step before clipping."""
        norm = self._gradient_norm
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
