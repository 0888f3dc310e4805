# SPDX-License-Identifier: Apache-2.0
"""Bytes that one process of train needs: what a fake step measures, and what only formulas give.

The numbers of parameters of a base model come from its layers without weights. By formula, because it needs a
device or several processes:

QLoRA
    A layer of n weights in 4 bits has n / 2 bytes, a byte for each block of 64 weights, and a float32 for
    each 256 of these bytes (T. Dettmers et al., "QLoRA", 2023, section 3). A matrix product converts one
    layer at a time to bfloat16.
Sharded weights (FSDP2)
    Each process has its share of weights, gradients and AdamW's two moments in float32. While a layer is
    computed, it and the next one are gathered in the dtype of the matrix products, and the gradient of a
    layer is whole once, in float32. Weights outside of the layers, such as embeddings, stay gathered during a
    step. An adapter is replicated over the shares of its base model.
Replicated adapters (DistributedDataParallel)
    Buckets with a second copy of the gradients.
Kernels of a GPU
    FlashAttention keeps the output and the normalizer of each row, as PyTorch's kernel on a CPU does. TRL's
    loss keeps the gradient of the hidden states in float32 in addition to the one in their own dtype; its
    tiles of logits are smaller than the chunks on a CPU. cuBLAS has a workspace of 32 MiB.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from finetune_trainer.contract.method import TYPES, Method
from finetune_trainer.model.device import multiplies_bfloat16
from finetune_trainer.model.loading import quantized_layers
from finetune_trainer.preflight.estimate.fake_step import (
    Precision,
    StepMeasure,
    StepShape,
    decoder_layers,
    measure_at_depth,
    measure_step,
)


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


FLOAT32_BYTES: Final = 4
BFLOAT16_BYTES: Final = 2
ADAM_MOMENTS: Final = 2
QUANTIZED_BYTES: Final = 1 / 2 + 1 / 64 + FLOAT32_BYTES / (64 * 256)
"""Bytes per weight of a layer in 4 bits with double quantization."""
WORKSPACE_BYTES: Final = 32 << 20
"""Workspace of cuBLAS per process, as PyTorch sets it for Hopper; smaller on older GPUs."""


@dataclass(frozen=True)
class TrainMemory:
    """Memory of one process of train, for any shape of its steps."""

    model: PreTrainedModel
    """The base model on the meta device."""
    method: Method
    """The method with the settings of its adapter."""
    processes: int
    """Processes that train together, one per device."""
    sharded: bool
    """Whether each of several processes has a share of the weights, instead of a replica."""
    on_gpu: bool
    _measured: dict[tuple[StepShape, bool], StepMeasure] = field(default_factory=dict)

    def step(self, shape: StepShape) -> StepMeasure:
        """What a fake step of this shape measures; each shape is measured once."""
        key = shape, self.sharded
        if key not in self._measured:
            self._measured[key] = measure_at_depth(
                self._config,
                lambda config: measure_step(
                    config, self.method, shape, self._precision, keeps_gradients=not self.sharded
                ),
            )
        return self._measured[key]

    def peak_bytes(self, shape: StepShape) -> int:
        """Peak bytes of tensors on the device in a step of this shape."""
        step = self.step(shape)
        peaks = dict(step.peaks)
        if self.on_gpu and ("head", 0) in peaks:
            hidden_size: int = self._config.get_text_config().hidden_size
            peaks["head", 0] += shape.rows * shape.length * hidden_size * (FLOAT32_BYTES - BFLOAT16_BYTES)
        workspace = WORKSPACE_BYTES if self.on_gpu else 0
        if self.sharded:
            return self._sharded_bytes(step, peaks) + workspace
        peak = max(peaks.values()) + workspace
        if TYPES[self.method.type].quantized_base:
            peak += quantized_difference(self._sizes, self._precision.weights.itemsize)
        if self.processes > 1:
            peak += step.trained_bytes
        return peak

    def with_shards(self, processes: int) -> "TrainMemory":
        """The same training with weights that are sharded across this number of processes."""
        return replace(self, processes=processes, sharded=True)

    def with_method(self, method: Method) -> "TrainMemory":
        """The same rows and model with another method."""
        return replace(self, method=method, _measured={})

    def state_bytes(self, step: StepMeasure) -> int:
        """Bytes of a resume state of the whole run: trained weights, and the optimizer's moments."""
        return self._trained(step) * FLOAT32_BYTES * (1 + ADAM_MOMENTS)

    @property
    def _config(self) -> PretrainedConfig:
        return self.model.config

    @cached_property
    def _sizes(self) -> ModelSizes:
        return ModelSizes.of(self.model, self._config)

    @property
    def _stored_precision(self) -> torch.dtype:
        """Dtype of the base model of an adapter, or of all weights of Full."""
        if not self._trains_adapter:
            return torch.float32
        fast = self.on_gpu or multiplies_bfloat16(torch.device("cpu"))
        if TYPES[self.method.type].quantized_base:
            return torch.bfloat16 if fast else torch.float32
        if not fast:
            return torch.float32
        dtype = stored_dtype(self._config)
        return torch.bfloat16 if self.on_gpu or dtype == torch.float16 else dtype

    @property
    def _precision(self) -> Precision:
        """Dtypes of a step. Layers of sharded weights are gathered in the dtype of the matrix products."""
        gathers_in_bfloat16 = self.sharded and self.on_gpu and not self._trains_adapter
        return Precision(
            torch.bfloat16 if gathers_in_bfloat16 else self._stored_precision, autocast=self.on_gpu
        )

    @property
    def _trains_adapter(self) -> bool:
        return TYPES[self.method.type].trains_adapter

    def _trained(self, step: StepMeasure) -> int:
        """Number of trained parameters. Adapters are float32."""
        itemsize = FLOAT32_BYTES if self._trains_adapter else self._precision.weights.itemsize
        return step.trained_bytes // itemsize

    def _sharded_bytes(self, step: StepMeasure, peaks: dict[tuple[str, int], int]) -> int:
        # A fake step that keeps no gradients has no moments, either.
        activations = max(peaks.values()) - step.frozen_bytes - step.trained_bytes
        itemsize = self._precision.weights.itemsize
        frozen = step.frozen_bytes // itemsize * self._stored_precision.itemsize
        if TYPES[self.method.type].quantized_base:
            frozen += quantized_difference(self._sizes, itemsize)
        trained = self._trained(step)
        replicated = trained if self._trains_adapter else 0
        adapter = FLOAT32_BYTES * replicated * (2 + ADAM_MOMENTS)
        return (
            activations
            + adapter
            + sharded_bytes(
                self._sizes,
                trained=trained - replicated,
                frozen_bytes=frozen,
                processes=self.processes,
                gathered_itemsize=itemsize,
            )
        )


def quantized_difference(sizes: ModelSizes, itemsize: int) -> int:
    """Bytes that a base model in 4 bits needs more than with weights of `itemsize` bytes; negative."""
    stored = sizes.quantized * (QUANTIZED_BYTES - itemsize)
    return round(stored) + sizes.largest_quantized * itemsize


def sharded_bytes(
    sizes: ModelSizes, *, trained: int, frozen_bytes: int, processes: int, gathered_itemsize: int
) -> int:
    """Bytes of weights, gradients and moments in a process that has a share of them.

    Args:
        sizes: those of the base model.
        trained: number of trained parameters.
        frozen_bytes: bytes of the parameters that are not trained.
        processes: number of processes.
        gathered_itemsize: bytes per weight of a gathered layer.
    """
    kept = FLOAT32_BYTES * trained * (2 + ADAM_MOMENTS) + frozen_bytes  # weights, gradients, moments
    gathered = gathered_itemsize * (2 * sizes.largest_layer + sizes.outside_layers)
    gradient = FLOAT32_BYTES * sizes.largest_layer if trained else 0
    return -(-kept // processes) + gathered + gradient
