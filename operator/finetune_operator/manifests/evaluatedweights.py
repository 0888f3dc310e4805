# SPDX-License-Identifier: Apache-2.0
"""Weights that an evaluate Job measures, from a Checkpoint or from the run that has just made them."""

from dataclasses import dataclass
from typing import cast

from finetune_operator.api.checkpoint import AdapterRecord, Checkpoint
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.hyperparameters import ResolvedHyperparameters
from finetune_trainer.contract.evaluation import LiveModel
from finetune_trainer.contract.methods import TYPES
from finetune_trainer.contract.vocabulary import FULL_MODEL, ChatTemplateKwargs, CheckpointType


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
    """Properties of an adapter; None if they are not recorded."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, job: FineTuneJob | None) -> "EvaluatedWeights | None":
        """The weights of a Checkpoint; None if it is unknown whether its base model was quantized.

        Args:
            job: the FineTuneJob that made the Checkpoint, if it still exists. Releases that did not record
                the method need it.
        """
        spec = checkpoint.spec
        quantized = _has_quantized_base(checkpoint, job)
        if quantized is None:
            return None
        return cls(
            digest=spec.digest,
            probe=spec.probe,
            type=spec.type,
            base_model=spec.lineage.base_model.digest,
            quantized_base=quantized,
            chat_template_kwargs=cast(ChatTemplateKwargs, spec.lineage.chat_template_kwargs or {}),
            hyperparameters=spec.lineage.hyperparameters,
            adapter=spec.lineage.adapter,
        )


def live_model(champion: Checkpoint, job: FineTuneJob | None) -> LiveModel:
    """The champion of a model line as the trainer needs it.

    If it is unknown whether its base model was quantized, it is measured as an endpoint serves it.

    Args:
        job: the FineTuneJob that made the champion, if it still exists.
    """
    spec = champion.spec
    return LiveModel(
        name=champion.name,
        digest=spec.digest,
        type=spec.type,
        base_model=spec.lineage.base_model.digest,
        quantized_base=_has_quantized_base(champion, job) or False,
        chat_template_kwargs=cast(ChatTemplateKwargs, spec.lineage.chat_template_kwargs or {}),
    )


def _has_quantized_base(checkpoint: Checkpoint, job: FineTuneJob | None) -> bool | None:
    method = checkpoint.spec.lineage.method or (job.spec.method if job is not None else None)
    if method is not None:
        return TYPES[method.type].quantized_base
    return False if checkpoint.spec.type == FULL_MODEL else None
