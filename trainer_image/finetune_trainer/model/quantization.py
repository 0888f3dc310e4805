"""Base models in 4 bits, as QLoRA trains on them and as its adapters are evaluated."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from finetune_trainer.model.device import multiplies_bfloat16
from finetune_trainer.model.load import load_base

logger = logging.getLogger(__name__)


def load_quantized_base(
    folder: Path, device: torch.device, device_map: Mapping[str, torch.device] | None = None
) -> PreTrainedModel:
    """Load the base model with linear layers of 4-bit NormalFloats with double quantization.

    Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023. Quantization is
    deterministic. The output head keeps the dtype of the matrix products: bfloat16, or float32 on a CPU that
    multiplies bfloat16 slowly.

    `device_map` is that of `load_base`.
    Raises StageFailure (BASE_MODEL_INVALID).
    """
    dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
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
    return model
