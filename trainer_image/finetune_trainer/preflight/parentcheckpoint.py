# SPDX-License-Identifier: Apache-2.0
"""Check the Checkpoint that a run continues from, and take over the settings of its adapter."""

from typing import Any, Final

from transformers import PreTrainedModel

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import LoRA, RequestedLoRA
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.contract.vocabulary import FULL_MODEL, FailureReason
from finetune_trainer.model.adapted_layers import linear_layers
from finetune_trainer.model.bundle import read_adapter
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext

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
