"""Load base models and adapters: only safetensors, and never code that comes with a model."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.model.device import is_out_of_memory, multiplies_bfloat16
from finetune_trainer.model.dora import fix_magnitudes
from finetune_trainer.runtime.failure import StageFailure


def load_base(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Load the causal language model in `folder`.

    Args:
        folder: config.json and safetensors.
        dtype: dtype of the weights; None for the stored dtype, or float32 if the device is slow with 16 bits.
        device: the device that the model runs on.
        quantization: quantization of the linear layers except the output head; None for no quantization.

    Raises StageFailure (BASE_MODEL_INVALID) with the text of the library's error.
    """
    _silence_libraries()
    if dtype is None and not multiplies_bfloat16(device):
        dtype = torch.float32
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            # Quantized layers are created on their device.
            **({"quantization_config": quantization, "device_map": {"": device}} if quantization else {}),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise StageFailure(
            FailureReason.BASE_MODEL_INVALID,
            f"base model in {folder}: the weights cannot be loaded: {type(error).__name__}: {error}",
        ) from error
    if quantization is None:
        model.to(device)  # type: ignore[arg-type] # its stub knows only one of the overloads
    return model


def load_adapter(base: PreTrainedModel, folder: Path, trained_as: LoraConfig | None = None) -> PeftModel:
    """Load the adapter in `folder` onto the base model: for inference, or to train it with `trained_as`.

    Raises StageFailure (ARTIFACT_CORRUPT) if the adapter does not fit the base model.
    """
    try:
        model = PeftModel.from_pretrained(
            base, str(folder), is_trainable=trained_as is not None, config=trained_as
        )
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT,
            f"adapter in {folder} does not fit the base model: {type(error).__name__}: {error}",
        ) from error
    if trained_as is None:
        fix_magnitudes(model, model.active_adapter)
    return model


def context_length(config: PretrainedConfig) -> int | None:
    """Context length of the model in tokens; None if its config does not state it."""
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length


def _silence_libraries() -> None:
    """Keep progress bars and warnings for developers of PEFT out of the log."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings(
        "ignore",
        message="`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated",
        category=FutureWarning,
    )
