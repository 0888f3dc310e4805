# SPDX-License-Identifier: Apache-2.0
"""How transformers shards a model across the processes of a run while it loads the weights (FSDP2)."""

from pathlib import Path

import torch
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from finetune_trainer.model.loading import empty_model_in


def sharding_config(
    folder: Path, processes: int, device: torch.device, *, frozen: bool = False
) -> DistributedConfig:
    """The sharding of the base model in `folder`: the layers that its class names are units of their own.

    A unit is gathered while it is computed. With mixed precision it is gathered in bfloat16, and gradients
    are summed in float32, like those of DDP and of a single process. `frozen` weights keep their dtype.

    Raises StageFailure (BASE_MODEL_INVALID).
    """
    model = empty_model_in(folder)
    layers = set(model._no_split_modules or ())
    return DistributedConfig(
        fsdp_size=processes,
        # In addition to the plan of transformers, which names no layer of architectures like GPT-2.
        fsdp_plan={
            replace_layer_number_by_wildcard(path): "free_full_weight"
            for path, module in model.named_modules()
            if type(module).__name__ in layers
        },
        fsdp_mixed_precision=not frozen and mixes_precision(device),
    )


def mixes_precision(device: torch.device) -> bool:
    """Whether training on this device computes in bfloat16 with float32 weights."""
    return device.type == "cuda"
