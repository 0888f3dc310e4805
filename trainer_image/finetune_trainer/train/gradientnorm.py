# SPDX-License-Identifier: Apache-2.0
"""The norm of a step's gradients, as clipping computes it."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Trainer
from typing_extensions import override


class NormKeeper(Trainer):
    """Keeps the norm by which gradients are clipped, so that no one computes it again. A mixin."""

    _gradient_norm: Any = None

    @override
    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        self._gradient_norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return self._gradient_norm

    def gradient_norm(self) -> float:
        """Norm of all gradients of the current optimizer step before clipping."""
        norm = self._gradient_norm
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
