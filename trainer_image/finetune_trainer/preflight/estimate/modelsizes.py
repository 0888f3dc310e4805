# SPDX-License-Identifier: Apache-2.0
"""Numbers of parameters of a base model, from its layers without weights."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from finetune_trainer.model.loading import quantized_layers
from finetune_trainer.preflight.estimate.fakestep import decoder_layers


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers of parameters."""

    parameters: int
    """All of them; shared ones count once."""
    quantized: int
    """Of the layers that QLoRA stores in 4 bits: linear layers except the output head."""
    largest_quantized: int
    """Of the largest one of these layers."""
    largest_layer: int
    """Of the largest layer of the decoder; 0 if the model has no list of its layers."""
    outside_layers: int
    """Of everything outside of the decoder's layers: embeddings, norms, output head, encoders."""

    @classmethod
    def of(cls, model: PreTrainedModel, config: PretrainedConfig) -> "ModelSizes":
        """Count those of a model, which may be on the meta device."""
        linear = [layer.weight.numel() for layer in quantized_layers(model).values()]
        layers = [_count(layer) for layer in decoder_layers(model, config) or ()]
        parameters = _count(model)
        return cls(
            parameters=parameters,
            quantized=sum(linear),
            largest_quantized=max(linear, default=0),
            largest_layer=max(layers, default=0),
            outside_layers=parameters - sum(layers),
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """Dtype of the stored weights as the config states it; float32 if it does not."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
