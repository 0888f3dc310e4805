# SPDX-License-Identifier: Apache-2.0
"""DoRA adapters in inference: as fast as plain LoRA, and in one batch with other adapters.

A layer computes W'x with W' = m / ‖W + s·BA‖ · (W + s·BA), where m are the trained magnitudes and the norm
is that of each row (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, equation 5). PEFT
computes BA and the norm in every pass, because both change in training, and refuses batches of several
adapters. In inference the weights are fixed, so m / ‖W + s·BA‖ is a constant.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from typing_extensions import override


class FixedMagnitude(LoraVariant):
    """One layer's DoRA with a constant factor m / ‖W + s·BA‖ of shape (output features,)."""

    def __init__(self, factor: Tensor) -> None:
        self._factor = factor

    @override
    def forward(  # type: ignore[override] # PEFT calls it on the instance
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """Compute the output of the layer; `result` is the base layer's output."""
        change = module.lora_B[active_adapter](module.lora_A[active_adapter](x))
        bias = module.get_base_layer().bias
        without_bias = result if bias is None else result - bias
        output: Tensor = self._factor * (without_bias + module.scaling[active_adapter] * change)
        return output if bias is None else output + bias


@torch.no_grad()
def fix_magnitudes(model: PeftModel, adapter: str) -> None:
    """Replace the factors of a loaded DoRA adapter by constants; other adapters do not change."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and layer.use_dora.get(adapter, False):
            layer.lora_variant[adapter] = FixedMagnitude(_factor(layer, adapter))
            # PEFT reads this flag only to refuse batches of several adapters.
            layer.use_dora[adapter] = False


def _factor(layer: Any, adapter: str) -> Tensor:
    magnitude = layer.lora_magnitude_vector[adapter]
    change = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
    # Weights in 4 bits are packed; others are returned as they are.
    weight = dequantize_module_weight(layer.get_base_layer()).to(change.dtype)
    factor: Tensor = magnitude.weight / magnitude.get_weight_norm(weight, change, layer.scaling[adapter])
    return factor
