# SPDX-License-Identifier: Apache-2.0
"""Base models in 4 bits, as QLoRA trains on them and as its adapters are evaluated."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from finetune_trainer.model.device import multiplies_bfloat16
from finetune_trainer.model.load import load_base

logger = logging.getLogger(__name__)


def load_quantized_base(
    folder: Path,
    device: torch.device,
    device_map: Mapping[str, torch.device] | None = None,
    sharding: DistributedConfig | None = None,
) -> PreTrainedModel:
    """Load the base model with linear layers of 4-bit NormalFloats with double quantization.

    Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023. Quantization is
    deterministic. The output head keeps the dtype of the matrix products: bfloat16, or float32 on a CPU that
    multiplies bfloat16 slowly.

    `device_map` is that of `load_base`. With `sharding`, each process keeps only its rows of the packed
    weights, which are the same numbers as without. While the model loads, each device holds all packed
    weights. Collective.

    Raises StageFailure (BASE_MODEL_INVALID).
    """
    dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP gathers only floating-point weights, so 4-bit numbers are packed into those.
        **({} if sharding is None else {"bnb_4bit_quant_storage": dtype}),
    )
    model = load_base(folder, dtype, device, quantization, device_map=device_map)
    if device.type == "cpu":
        # Imported late, because most runs do not need it.
        from bitsandbytes.nn.modules import Linear4bit

        logger.warning("4 bits save memory on a CPU, but a pass takes longer than in 16 bits")
        for layer in model.modules():
            # Otherwise the first pass without gradients would convert the weights permanently to a form for
            # inference only, with other results than in training.
            if isinstance(layer, Linear4bit):
                layer.support_avx512bf16_for_cpu = False
    if sharding is not None:
        _shard(model, sharding)
    return model


def quantized_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The layers that are in 4 bits after loading, by path: linear ones except the output head.

    `model` may be on the meta device.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _shard(model: PreTrainedModel, sharding: DistributedConfig) -> None:
    """Keep only this process's rows of loaded weights; the scales of the blocks stay whole."""
    from bitsandbytes.nn.modules import Linear4bit

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    packed = [(layer, layer.weight.compress_statistics, layer.weight.quant_type) for layer in layers]
    resolved, _, mesh = model.prepare_distribute_model(sharding)
    model.maybe_distribute_model(model, resolved, mesh)
    for layer, compress_statistics, quant_type in packed:
        # PEFT reads the settings of the weight, which FSDP has replaced.
        layer.weight.compress_statistics, layer.weight.quant_type = compress_statistics, quant_type
