# SPDX-License-Identifier: Apache-2.0
"""Check that transformers can train a model, from its config and without its weights."""

from copy import deepcopy
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune_trainer.contract.method import TYPES, Method
from finetune_trainer.model.adapted_layers import stacked_experts
from finetune_trainer.model.loading import empty_model
from finetune_trainer.preflight.modelfiles import invalid
from finetune_trainer.train.modelsetup import adapter_config


def load_config(folder: Path, uri: str) -> PretrainedConfig:
    """Load the model's config.

    Raises StageFailure (BASE_MODEL_INVALID) unless it belongs to a causal language model that transformers
    supports, with weights that are not quantized.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise invalid(
            uri, f"its config.json is damaged, or of a model that this trainer does not support: {error}"
        ) from error
    architectures = config.architectures or []
    if not set(architectures).intersection(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        names = ", ".join(architectures) or "none"
        raise invalid(uri, f"architecture {names} is not a causal language model that this trainer supports")
    if getattr(config, "quantization_config", None) is not None:
        raise invalid(uri, "its weights are quantized; use the version in bfloat16, float16 or float32")
    return config


def build_empty(config: PretrainedConfig, uri: str) -> PreTrainedModel:
    """Build the model on the meta device, without memory. Raises StageFailure (BASE_MODEL_INVALID)."""
    try:
        return empty_model(config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise invalid(uri, f"transformers cannot build the model from its config.json: {error}") from error


def check_adapter(model: PreTrainedModel, method: Method, uri: str) -> tuple[str, ...]:
    """Build the adapter of `method` as training does, without weights. Returns what the user should know.

    `model` is on the meta device and stays as it is.

    Raises StageFailure (INVALID_CONFIG) for target modules that the model does not have,
    (BASE_MODEL_INVALID) for a model that PEFT cannot adapt.
    """
    if not TYPES[method.type].trains_adapter:
        return ()
    left_out = stacked_experts(model)
    adapter = adapter_config(model, method)
    try:
        with torch.device("meta"):
            get_peft_model(deepcopy(model), adapter)
    except (ValueError, TypeError, RuntimeError) as error:
        raise invalid(uri, f"PEFT cannot adapt this model: {error}") from error
    if left_out is None:
        return ()
    warning = (
        f"the adapter leaves out the experts ({', '.join(left_out.names)}), which are {left_out.share:.0%} of"
        " the model's parameters; only method.type Full trains them"
    )
    return (warning,)
