# SPDX-License-Identifier: Apache-2.0
"""Prepares a model for training: base weights, adapter, precision and quantization."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from finetune_trainer.contract.method import TYPES, Method
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.adapted_layers import (
    excluded_layers,
    freeze_encoders,
    linear_layers,
    unknown_layers,
)
from finetune_trainer.model.device import mixes_precision
from finetune_trainer.model.loading import load_adapter, load_base, load_quantized_base
from finetune_trainer.runtime.termination import StageFailure

Trainable = PreTrainedModel | PeftModel


def trainable_model(
    folder: Path,
    method: Method,
    device: torch.device,
    parent: Path | None = None,
    sharding: DistributedConfig | None = None,
) -> Trainable:
    """Load the base model in `folder` and prepare it for `method`; a new adapter draws random numbers.

    With `parent`, training starts from the weights in that folder: an adapter with the LoRA settings of
    `method`, or a whole model for Full. With `sharding`, each process gets its rows of the loaded weights,
    and the call is collective; an adapter is whole in each process.

    Precision:

    - The adapter is float32.
    - The base model of LoRA is bfloat16 on a GPU, and has its stored dtype on a CPU that multiplies bfloat16:
      there a step takes a third of the time of float32, and float16, which it computes slowly, becomes
      bfloat16. On other CPUs the base model is float32.
    - The linear layers of QLoRA are 4-bit NormalFloats, and are never merged with the adapter.
    - Full trains in float32, because small updates vanish in 16 bits; GPUs multiply the matrices in bfloat16.

    Raises StageFailure (BASE_MODEL_INVALID, INVALID_CONFIG, ARTIFACT_CORRUPT).
    """
    info = TYPES[method.type]
    if not info.trains_adapter:
        whole = load_base(parent or folder, torch.float32, device, sharding=sharding)
        freeze_encoders(whole)
        return whole
    if info.quantized_base:
        base = load_quantized_base(folder, device, sharding=sharding)
    else:
        base = load_base(folder, None, device, sharding=sharding)
    if base.dtype == torch.float16:
        base = base.to(torch.bfloat16)  # type: ignore[arg-type] # its stub knows one overload
    adapter = adapter_config(base, method)
    if parent is not None:
        return prepare_adapter(
            load_adapter(base, parent, trained_as=adapter), autocast=mixes_precision(device)
        )
    return add_adapter(base, adapter, autocast=mixes_precision(device))


def add_adapter(base: PreTrainedModel, adapter: LoraConfig, *, autocast: bool) -> PeftModel:
    """The base model with a new adapter. `autocast`: as for `prepare_adapter`."""
    model = get_peft_model(base, adapter)
    if not isinstance(model, PeftModel):
        raise TypeError(f"PEFT returned a {type(model).__name__}")
    return prepare_adapter(model, autocast=autocast)


def prepare_adapter(model: PeftModel, *, autocast: bool) -> PeftModel:
    """Set what PEFT's layers do with their inputs.

    They convert them to float32, the dtype of the adapter. Under autocast that is converted back at once, and
    costs more than a quarter of the bytes that a step of LoRA writes.

    Args:
        model: the base model with its adapter.
        autocast: whether it is trained under autocast.
    """
    for layer in model.modules() if autocast else ():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
    return model


def adapter_config(base: PreTrainedModel, method: Method) -> LoraConfig:
    """The settings of a new adapter for the base model, with names of the layers that it adapts.

    Raises StageFailure (INVALID_CONFIG) for target modules that the model does not have.
    """
    targets = list(method.lora.target_modules) or linear_layers(base)
    unknown = unknown_layers(base, targets)
    if unknown or not targets:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.lora.targetModules: the model has no linear layer {', '.join(unknown)} to adapt; its"
            f" linear layers are {', '.join(linear_layers(base)) or 'none'}",
        )
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=method.lora.r,
        lora_alpha=method.lora.alpha,
        lora_dropout=method.lora.dropout,
        target_modules=targets,
        exclude_modules=excluded_layers(base, targets),
        use_rslora=method.lora.rslora,
        use_dora=method.lora.dora,
    )
