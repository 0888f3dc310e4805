# SPDX-License-Identifier: Apache-2.0
"""Load base models and adapters: only safetensors, and never code that comes with a model."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
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

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.bundle import GENERATION_CONFIG
from finetune_trainer.model.device import is_collective_error, is_out_of_memory, multiplies_bfloat16
from finetune_trainer.model.dora import fix_magnitudes
from finetune_trainer.runtime.failure import StageFailure


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
        dtype: dtype of the weights; None for the stored dtype, or float32 if the device is slow with 16 bits.
        device: the device that the model runs on, or the first of several.
        quantization: quantization of the linear layers except the output head; None for no quantization.
        sharding: how the weights are sharded across the processes of the run: each reads only its own rows,
            and the call is collective. None to load all weights.
        device_map: the device of each module by its name; None for `device`.

    Raises StageFailure (BASE_MODEL_INVALID) with the text of the library's error.
    """
    _silence_libraries()
    if dtype is None and not multiplies_bfloat16(device):
        dtype = torch.float32
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


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device, in the stored dtype: its layers without weights.

    Raises what transformers raises for a config from which it cannot build the model.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=config.dtype or torch.float32, trust_remote_code=False
        )
    model.tie_weights()
    return model


def empty_model_in(folder: Path) -> PreTrainedModel:
    """The model in `folder` as of `empty_model`. Raises StageFailure (BASE_MODEL_INVALID)."""
    with _reading_config(folder):
        return empty_model(_config(folder))


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
    with _reading_config(folder):
        return context_length(_config(folder))


def read_generation_config(folder: Path) -> GenerationConfig:
    """The generation config that the model in `folder` has once it is loaded.

    Raises StageFailure (BASE_MODEL_INVALID).
    """
    with _reading_config(folder):
        if (folder / GENERATION_CONFIG).exists():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
        return GenerationConfig.from_model_config(_config(folder))


def _config(folder: Path) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return config


@contextmanager
def _reading_config(folder: Path) -> Iterator[None]:
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
