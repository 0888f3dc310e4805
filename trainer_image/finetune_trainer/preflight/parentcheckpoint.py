"""The Checkpoint that a run continues from: whether it is there, and how its adapter is made."""

from typing import Any, Final

from transformers import PreTrainedModel

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import LoRA
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint
from finetune_trainer.contract.vocabulary import FULL_MODEL
from finetune_trainer.model.adapter import read_adapter
from finetune_trainer.model.modules import linear_layers
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext

FIELDS: Final = {
    "r": "r",
    "alpha": "alpha",
    "target_modules": "targetModules",
    "rslora": "rsLoRA",
    "dora": "dora",
}
"""What the weights of an adapter are made for, by its name in the spec."""


def continued_lora(
    parent: ParentCheckpoint, base_model: Digest, wanted: LoRA, model: PreTrainedModel, context: StageContext
) -> LoRA | None:
    """The settings of the adapter that is trained on; None for a parent that is a whole model.

    A field of `wanted` at its default counts as left out and is the parent's.
    Raises StageFailure: INVALID_CONFIG for another value than the parent's, BASE_MODEL_MISMATCH,
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
            f"baseModel.checkpoint: the adapter of Checkpoint {parent.name} was trained from base model"
            f" {trained_from}, but the record says {base_model}: continue from another Checkpoint",
        )
    theirs = adapter.lora
    for name, field in FIELDS.items():
        mine, parents = _setting(wanted, name), _setting(theirs, name)
        if mine not in (_setting(LoRA(), name), parents):
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"method.lora.{field}: {_shown(mine)}, but the adapter of Checkpoint {parent.name} has"
                f" {_shown(parents)}, and it is trained on as it is: leave {field} out, or start from the"
                " base model with baseModel.uri",
            )
    everything = set(theirs.target_modules) == set(linear_layers(model))
    return theirs.model_copy(
        update={
            "dropout": theirs.dropout if wanted.dropout == LoRA().dropout else wanted.dropout,
            "target_modules": () if everything else theirs.target_modules,
        }
    )


def _setting(lora: LoRA, name: str) -> Any:
    value = getattr(lora, name)
    return sorted(set(value)) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)
