# SPDX-License-Identifier: Apache-2.0
"""The devices that hold the layers of one model, for evaluation and serving.

Several devices compute the layers of a model one after the other: it gets their memory, and not their speed.
Weights are only in the memory of devices: a layer in host memory or on disk would be copied for each token.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import CustomDtype, compute_module_sizes, get_balanced_memory
from transformers import PreTrainedModel

from finetune_trainer.contract.prediction import GIBIBYTE
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.device import memory_use
from finetune_trainer.model.load import empty_model_in, load_base
from finetune_trainer.model.quantization import load_quantized_base, quantized_layers
from finetune_trainer.runtime.failure import StageFailure

WEIGHTS_SHARE: Final = 0.9
"""Share of a device's free memory that weights may take. The rest is for activations and the KV cache."""

DeviceMap = Mapping[str, torch.device]
"""The device of each module by its name; it includes the modules within."""

logger = logging.getLogger(__name__)


def visible_devices() -> tuple[torch.device, ...]:
    """The accelerators that the process sees, which are those of its pod; the CPU if it sees none."""
    if not torch.cuda.is_available():
        return (torch.device("cpu"),)
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def load_placed(folder: Path, devices: Sequence[torch.device], *, quantized: bool = False) -> PreTrainedModel:
    """Load the base model in `folder` for inference: on one device, or with layers on each of several.

    Args:
        folder: config.json and safetensors.
        devices: the devices, of one type. The first one gets the inputs.
        quantized: whether the linear layers are in 4 bits, as QLoRA trains on them.

    Raises StageFailure (BASE_MODEL_INVALID), or (OUT_OF_MEMORY) before any weights are loaded, if several
    devices together do not have enough memory.
    """
    device_map = None
    if len(devices) > 1:
        room = [int(WEIGHTS_SHARE * (total - used)) for used, total in map(memory_use, devices)]
        device_map = place_layers(empty_model_in(folder), devices, room, quantized=quantized)
        logger.info("layers per device: %s", Counter(map(str, device_map.values())))
    if quantized:
        model = load_quantized_base(folder, devices[0], device_map)
    else:
        model = load_base(folder, None, devices[0], device_map=device_map)
    if device_map is not None:
        connect_layers(model, device_map)
    return model


def connect_layers(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Let each layer move its inputs to its device, and the model return its outputs on that of its inputs.

    Replaces the hooks of transformers, which would move the indices of `logits_to_keep` away from the CPU,
    where they index the output of any device.
    """
    remove_hook_from_submodules(model)
    dispatch_model(
        model,
        dict(device_map),
        main_device=next(iter(device_map.values())),
        force_hooks=True,
        skip_keys=[*(model._skip_keys_device_placement or ()), "logits_to_keep"],
    )


def weights_bytes(model: PreTrainedModel, *, quantized: bool = False) -> int:
    """Bytes of the weights of a model as inference loads them; it may be on the meta device."""
    return int(compute_module_sizes(model, **_dtypes(model, quantized=quantized))[""])


def place_layers(
    model: PreTrainedModel,
    devices: Sequence[torch.device],
    room: Sequence[int],
    *,
    quantized: bool = False,
) -> dict[str, torch.device]:
    """Distribute whole layers evenly over devices.

    Args:
        model: the model on the meta device.
        devices: the devices, in the order of the layers.
        room: max bytes of weights on each device.
        quantized: whether the linear layers are in 4 bits.

    Raises StageFailure (OUT_OF_MEMORY) if the layers do not fit.
    """
    layers: dict[str, Any] = {
        "no_split_module_classes": list(model._no_split_modules or ()),
        **_dtypes(model, quantized=quantized),
    }
    limits = dict(enumerate(room))
    # An even share per device leaves each the same memory for activations. If a large layer does not fit into
    # its share, the devices are filled in order.
    for memory in (get_balanced_memory(model, dict(limits), **layers), limits):
        placed = infer_auto_device_map(model, memory, **layers)
        if all(isinstance(place, int) for place in placed.values()):
            return {name: devices[place] for name, place in placed.items()}
    raise _too_small(weights_bytes(model, quantized=quantized), room)


def _dtypes(model: PreTrainedModel, *, quantized: bool) -> dict[str, Any]:
    """The dtypes of loaded weights, as accelerate's functions take them.

    Quantization stores linear layers except the output head in 4 bits, and other layers in 16.
    """
    if not quantized:
        return {}
    in_four_bits = {f"{name}.weight": CustomDtype.INT4 for name in quantized_layers(model)}
    return {"dtype": torch.bfloat16, "special_dtypes": in_four_bits}


def _too_small(size: int, room: Sequence[int]) -> StageFailure:
    total = sum(room)
    missing = (
        f"{(size - total) / GIBIBYTE:.2f} GiB are missing"
        if size > total
        else "its layers, which are not divided, do not fit into the memory of each"
    )
    return StageFailure(
        FailureReason.OUT_OF_MEMORY,
        f"the weights of the model take {size / GIBIBYTE:.2f} GiB, and its {len(room)} devices have"
        f" {total / GIBIBYTE:.2f} GiB for weights, {WEIGHTS_SHARE:.0%} of their free memory: {missing}. Use"
        " more devices, or a ComputeProfile with more memory per device",
    )
