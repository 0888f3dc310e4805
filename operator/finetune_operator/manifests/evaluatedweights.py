# SPDX-License-Identifier: Apache-2.0
"""Weights that an evaluate Job measures, from a Checkpoint or from the run that has just made them."""

from dataclasses import dataclass
from typing import cast

from finetune_operator.api.checkpoint import AdapterRecord, Checkpoint
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_trainer.contract.evaluation import LiveModel
from finetune_trainer.contract.method import TYPES
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedWeights:
    """Weights, and the settings of their training that decide how they are measured."""

    digest: str
    probe: str | None = None
    """Digest of their probe; None if they have none."""
    type: CheckpointType
    base_model: str
    """Digest of the base model."""
    quantized_base: bool
    """Whether they were trained on a base model in 4 bits."""
    chat_template_kwargs: ChatTemplateKwargs
    hyperparameters: ResolvedHyperparameters
    adapter: AdapterRecord | None = None
    """Properties of an adapter; None of a whole model."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "EvaluatedWeights":
        """The weights of a Checkpoint."""
        spec = checkpoint.spec
        return cls(
            digest=spec.digest,
            probe=spec.probe,
            type=spec.type,
            base_model=spec.lineage.base_model.digest,
            quantized_base=TYPES[spec.lineage.method.type].quantized_base,
            chat_template_kwargs=cast(ChatTemplateKwargs, spec.lineage.chat_template_kwargs or {}),
            hyperparameters=spec.lineage.hyperparameters,
            adapter=spec.lineage.adapter,
        )


def live_model(champion: Checkpoint) -> LiveModel:
    """The champion of a model line as the trainer needs it."""
    spec = champion.spec
    return LiveModel(
        name=champion.name,
        digest=spec.digest,
        type=spec.type,
        base_model=spec.lineage.base_model.digest,
        quantized_base=TYPES[spec.lineage.method.type].quantized_base,
        chat_template_kwargs=cast(ChatTemplateKwargs, spec.lineage.chat_template_kwargs or {}),
    )
