# SPDX-License-Identifier: Apache-2.0
"""Whether a method can train this model, this parent and these rows, and the settings that follow.

- Rows: method and rows must suit each other. The settings for preference data follow from both.
- Parent: the run takes over the settings of the adapter in the Checkpoint from which it continues.
- Model: transformers must be able to train it, by its config and without its weights.
"""

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from peft import get_peft_model
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import (
    DEFAULT_OBJECTIVE,
    LABELLED,
    OBJECTIVES,
    TYPES,
    LoRA,
    Method,
    Preference,
    RequestedLoRA,
    Sharding,
    can_shard,
    objectives_where,
    types_of,
)
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.contract.vocabulary import FULL_MODEL, FailureReason, RowForm, join_names
from finetune_trainer.model.adapted_layers import linear_layers, stacked_experts
from finetune_trainer.model.bundle import read_adapter
from finetune_trainer.model.loading import build_empty_model
from finetune_trainer.preflight.base_model import invalid_model_failure
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.train.model_setup import adapter_config


def check_method(method: Method, form: RowForm) -> None:
    """Raise StageFailure (INVALID_CONFIG) for a pair that the trainer does not have, and for rows of a form
    that the objective does not train on."""
    objective, types = method.objective, types_of(method.objective)
    if method.type not in types:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.type: {method.type} is not in this release with method.objective: {objective}; set"
            f" method.type to {join_names(types, 'or')}",
        )
    needed = OBJECTIVES[objective].rows
    if form in needed.forms:
        return
    suitable = join_names(objectives_where(lambda info: form in info.rows.forms), "or")
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"method.objective: {objective} trains on rows with {needed.description}, but the rows of the dataset"
        f" have the format {form}; set method.objective to {suitable}, or choose another dataset",
    )


def check_sharding(sharding: Sharding, method: Method) -> None:
    """Raise StageFailure (INVALID_CONFIG) if the weights cannot be sharded as requested."""
    if sharding == "Sharded" and not can_shard(method):
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            "compute.sharding: Sharded, but the weights of DoRA are replicated in this release; remove it, or"
            " remove method.lora.dora",
        )


class Labelled(Protocol):
    """A row of preference data, with its label if it has one."""

    @property
    def label(self) -> bool | None:
        """Whether the answer is good."""


def resolve_preference(method: Method, train: Iterable[Labelled]) -> Preference | None:
    """Resolve the settings of an objective for preference data; None for other objectives.

    The default weights of KTO give both labels the same total weight: desirable weight × good rows =
    undesirable weight × bad rows, as its paper recommends (Ethayarajh et al., 2024, equation 8). The label
    with more rows has the weight 1.
    Raises StageFailure (INVALID_CONFIG) if all rows have the same label.
    """
    rows = OBJECTIVES[method.objective].rows
    if not rows.is_preference_data:
        return None
    if rows is not LABELLED:
        return method.preference
    labels = Counter(row.label is True for row in train)
    good, bad = labels[True], labels[False]
    if not (good and bad):
        missing = "true" if bad else "false"
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.objective: {method.objective} needs good and bad answers, but none of the {good + bad}"
            f" training rows has the label {missing}; add such rows, or train on the good answers with"
            f" method.objective: {DEFAULT_OBJECTIVE}",
        )
    given = method.preference
    desirable, undesirable = given.desirable_weight, given.undesirable_weight
    if desirable is None and undesirable is None:
        desirable, undesirable = (1.0, good / bad) if good > bad else (bad / good, 1.0)
    elif desirable is None and undesirable is not None:
        desirable = undesirable * bad / good
    elif undesirable is None and desirable is not None:
        undesirable = desirable * good / bad
    return given.model_copy(
        update={"desirable_weight": _rounded(desirable), "undesirable_weight": _rounded(undesirable)}
    )


def _rounded(weight: float | None) -> float:
    return float(f"{weight or 0:.4g}")


FIELDS: Final = {
    "r": "r",
    "alpha": "alpha",
    "target_modules": "targetModules",
    "rslora": "rsLoRA",
    "dora": "dora",
}
"""Names in the spec of the settings that an adapter's weights depend on."""


def continued_lora(
    parent: ParentCheckpoint,
    base_model: Digest,
    requested: RequestedLoRA,
    model: PreTrainedModel,
    context: StageContext,
) -> LoRA | None:
    """Settings of the adapter that the run continues; None if the parent is a complete model.

    Raises StageFailure: INVALID_CONFIG for a value that differs from the parent's, BASE_MODEL_MISMATCH,
    ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, STORE_UNAVAILABLE; Preempted.
    """
    ref = ArtifactRef(kind="checkpoints", digest=parent.digest)
    if parent.type == FULL_MODEL:
        context.store.manifest(ref)
        return None
    adapter = read_adapter(context.store.artifact(ref, verify=True))
    trained_from = adapter.base_model_name_or_path
    if trained_from != base_model:
        raise StageFailure(
            FailureReason.BASE_MODEL_MISMATCH,
            f"baseModel: the adapter of Checkpoint {parent.name} was trained from base model"
            f" {trained_from}, but its record names {base_model}; continue from another Checkpoint",
        )
    lora = adapter.lora
    for name, field in FIELDS.items():
        if getattr(requested, name) is None:
            continue
        value, parent_value = _setting(requested, name), _setting(lora, name)
        if value != parent_value:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"method.lora.{field}: {_format(value)}, but the adapter of Checkpoint {parent.name} has"
                f" {_format(parent_value)}, which continued training cannot change; remove {field}, or start"
                " from the base model with baseModel.uri",
            )
    targets_all = set(lora.target_modules) == set(linear_layers(model))
    return lora.model_copy(
        update={
            "dropout": lora.dropout if requested.dropout is None else requested.dropout,
            "target_modules": () if targets_all else lora.target_modules,
        }
    )


def _setting(lora: LoRA | RequestedLoRA, name: str) -> Any:
    value = getattr(lora, name)
    return sorted(set(value)) if isinstance(value, tuple) else value


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)


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
        raise invalid_model_failure(
            uri, f"its config.json is damaged, or of a model that this trainer does not support: {error}"
        ) from error
    architectures = config.architectures or []
    if not set(architectures).intersection(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        names = ", ".join(architectures) or "none"
        raise invalid_model_failure(
            uri, f"architecture {names} is not a causal language model that this trainer supports"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise invalid_model_failure(
            uri, "its weights are quantized; use the version in bfloat16, float16 or float32"
        )
    return config


def build_empty(config: PretrainedConfig, uri: str) -> PreTrainedModel:
    """Build the model on the meta device, without memory. Raises StageFailure (BASE_MODEL_INVALID)."""
    try:
        return build_empty_model(config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise invalid_model_failure(
            uri, f"transformers cannot build the model from its config.json: {error}"
        ) from error


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
        raise invalid_model_failure(uri, f"PEFT cannot adapt this model: {error}") from error
    if left_out is None:
        return ()
    warning = (
        f"the adapter leaves out the experts ({', '.join(left_out.names)}), which are {left_out.share:.0%} of"
        " the model's parameters; only method.type Full trains them"
    )
    if TYPES[method.type].quantized_base:
        warning += (
            f"; {method.type} leaves them in 16 bits too, so that at most {1 - left_out.share:.0%} of the"
            " parameters are in 4 bits"
        )
    return (warning,)
