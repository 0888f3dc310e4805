# SPDX-License-Identifier: Apache-2.0
"""Loads base models and adapters, in 16 or 4 bits, on one or several devices.

- Only safetensors are loaded, and never code that comes with a model.
- Models in 4 bits are those of QLoRA: it trains on them, and its adapters are evaluated on them.
- Several devices, for evaluation and serving, compute the layers of a model one after the other: it gets
  their memory, and not their speed. Weights are only in the memory of devices: a layer in host memory or on
  disk would be copied for each token.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import CustomDtype, compute_module_sizes, get_balanced_memory
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_logging

from finetune_trainer.contract.accelerators import GIBIBYTE
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.bundle import GENERATION_CONFIG
from finetune_trainer.model.device import (
    frozen_dtype,
    is_collective_error,
    is_out_of_memory,
    memory_use,
    multiplies_bfloat16,
)
from finetune_trainer.model.dora import fix_magnitudes
from finetune_trainer.runtime.termination import StageFailure


def load_base(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    sharding: DistributedConfig | None = None,
    *,
    device_map: Mapping[str, torch.device] | None = None,
) -> PreTrainedModel:
    """Load the causal language model in `folder`. Weights go to the device as they are read.

    Args:
        folder: config.json and safetensors.
        dtype: dtype of the weights; None for that of `frozen_dtype`.
        device: the device that the model runs on, or the first of several.
        quantization: quantization of the linear layers except the output head; None for no quantization.
        sharding: how the weights are sharded across the processes of the run: each reads only its own rows,
            and the call is collective. None to load all weights.
        device_map: the device of each module by its name; None for `device`.

    Raises StageFailure (BASE_MODEL_INVALID) with the text of the library's error.
    """
    _silence_libraries()
    dtype = dtype or frozen_dtype(device)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            quantization_config=quantization,
            distributed_config=sharding,
            device_map=dict(device_map or {"": device}) if sharding is None else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error) or is_collective_error(error):
            raise
        raise StageFailure(
            FailureReason.BASE_MODEL_INVALID,
            f"base model in {folder}: the weights cannot be loaded: {type(error).__name__}: {error}",
        ) from error
    if sharding is not None:
        _initialize_containers(model)
    return model


def build_empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device, in the stored dtype: its layers without weights.

    Raises what transformers raises for a config from which it cannot build the model.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=config.dtype or torch.float32, trust_remote_code=False
        )
    model.tie_weights()
    return model


def read_empty_model(folder: Path) -> PreTrainedModel:
    """The model in `folder` as of `build_empty_model`. Raises StageFailure (BASE_MODEL_INVALID)."""
    with _convert_config_errors(folder):
        return build_empty_model(_config(folder))


def load_adapter(
    base: PreTrainedModel | PeftModel,
    folder: Path,
    trained_as: LoraConfig | None = None,
    *,
    name: str = "default",
    merges: bool = False,
) -> PeftModel:
    """Load the adapter in `folder` onto the base model: for inference, or to train it with `trained_as`.

    A base model with adapters gets another one, which `name` identifies. `merges`: it will be merged into the
    base model, for which DoRA's magnitudes must be PEFT's own.

    Raises StageFailure (ARTIFACT_CORRUPT) if the adapter does not fit the base model.
    """
    try:
        if isinstance(base, PeftModel):
            model = base
            _check_matched(base.load_adapter(str(folder), name))
        else:
            model = PeftModel.from_pretrained(
                base, str(folder), name, is_trainable=trained_as is not None, config=trained_as
            )
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT,
            f"adapter in {folder} does not fit the base model: {type(error).__name__}: {error}",
        ) from error
    if trained_as is None and not merges:
        fix_magnitudes(model, name)
    return model


def _check_matched(loaded: Any) -> None:
    # PEFT only warns about these. The adapter would have less effect than trained, or none.
    unmatched = [*loaded.unexpected_keys, *loaded.missing_keys]
    if unmatched:
        raise ValueError(f"unmatched weights: {', '.join(unmatched[:3])}")


def read_context_length(folder: Path) -> int | None:
    """As `context_length`, of the model in `folder`. Raises StageFailure (BASE_MODEL_INVALID)."""
    with _convert_config_errors(folder):
        return context_length(_config(folder))


def read_generation_config(folder: Path) -> GenerationConfig:
    """The generation config that the model in `folder` has once it is loaded.

    Raises StageFailure (BASE_MODEL_INVALID).
    """
    with _convert_config_errors(folder):
        if (folder / GENERATION_CONFIG).exists():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
        return GenerationConfig.from_model_config(_config(folder))


def _config(folder: Path) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return config


@contextmanager
def _convert_config_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise StageFailure(
            FailureReason.BASE_MODEL_INVALID,
            f"base model in {folder}: its config cannot be read: {type(error).__name__}: {error}",
        ) from error


def context_length(config: PretrainedConfig) -> int | None:
    """Context length of the model in tokens; None if its config does not state it."""
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length


def _initialize_containers(model: PreTrainedModel) -> None:
    """Initialize what models without tensors of their own set in their parts, such as a buffer of Falcon-H1.

    transformers skips them in a sharded model, whose class is not from transformers. Loaded tensors stay.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and next(module.parameters(recurse=False), None) is None:
                module._init_weights(module)  # type: ignore[no-untyped-call]


def _silence_libraries() -> None:
    """Keep progress bars and warnings for developers of PEFT out of the log."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings(
        "ignore",
        message="`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated",
        category=FutureWarning,
    )


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


WEIGHTS_SHARE: Final = 0.9
"""Share of a device's free memory that weights may take. The rest is for activations and the KV cache."""

DeviceMap = Mapping[str, torch.device]
"""The device of each module by its name; it includes the modules within."""


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
        device_map = place_layers(read_empty_model(folder), devices, room, quantized=quantized)
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
    raise _too_small_failure(weights_bytes(model, quantized=quantized), room)


def _dtypes(model: PreTrainedModel, *, quantized: bool) -> dict[str, Any]:
    """The dtypes of loaded weights, as accelerate's functions take them.

    Quantization stores linear layers except the output head in 4 bits, and other layers in 16.
    """
    if not quantized:
        return {}
    in_four_bits = {f"{name}.weight": CustomDtype.INT4 for name in quantized_layers(model)}
    return {"dtype": torch.bfloat16, "special_dtypes": in_four_bits}


def _too_small_failure(size: int, room: Sequence[int]) -> StageFailure:
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
