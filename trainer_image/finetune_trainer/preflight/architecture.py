"""Whether transformers can train this model, from its config alone and without its weights."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune_trainer.contract.method import Method
from finetune_trainer.contract.methods import METHODS
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.model.modules import linear_layers, unknown_layers
from finetune_trainer.preflight.modelfiles import invalid
from finetune_trainer.runtime.failure import StageFailure


def load_config(folder: Path, uri: str) -> PretrainedConfig:
    """The model's config.

    Raises StageFailure (BASE_MODEL_INVALID) unless it is of a causal language model that transformers knows,
    not quantized.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise invalid(
            uri, f"its config.json is not of a model that this trainer knows, or is damaged: {error}"
        ) from error
    architectures = config.architectures or []
    if not set(architectures).intersection(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        named = ", ".join(architectures) or "none"
        raise invalid(uri, f"architecture {named} is no causal language model that this trainer knows")
    if getattr(config, "quantization_config", None) is not None:
        raise invalid(uri, "its weights are quantized; use the version in bfloat16, float16 or float32")
    return config


def without_weights(config: PretrainedConfig, uri: str) -> PreTrainedModel:
    """The model's modules, which take no memory. Raises StageFailure (BASE_MODEL_INVALID)."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise invalid(uri, f"transformers cannot build it from its config.json: {error}") from error
    return model


def check_target_modules(model: PreTrainedModel, method: Method) -> None:
    """Raises StageFailure (INVALID_CONFIG) for adapter targets that the model does not have."""
    if not METHODS[method.type].trains_adapter:
        return
    unknown = unknown_layers(model, method.lora.target_modules)
    if unknown:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.lora.targetModules: this model has no linear layer {', '.join(unknown)} that can be"
            f" adapted; it has {', '.join(linear_layers(model))}",
        )
