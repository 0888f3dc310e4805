# SPDX-License-Identifier: Apache-2.0
"""Weights in a store, as endpoints serve them and evaluations measure them.

Endpoints refer to them by a Checkpoint or a pin, evaluate Jobs by a Checkpoint or the run that has just made
them.
"""

from dataclasses import dataclass, field, replace
from typing import cast

from finetune_operator.api.checkpoint import AdapterRecord, BaseModelRecord, Checkpoint
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_operator.manifests.labels import STORE_CREDENTIALS
from finetune_trainer.contract.evaluation import LiveModel
from finetune_trainer.contract.method import TYPES
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FULL_MODEL, ChatTemplateKwargs, CheckpointType


@dataclass(frozen=True, slots=True)
class WeightsReference:
    """Reference to a folder of weights in a store, with its digest."""

    uri: str
    digest: str
    type: CheckpointType
    checkpoint: str | None = None
    """Name of the Checkpoint; None if a pin references the folder by URI."""
    base_model: BaseModelRecord | None = None
    """Base model of the weights; None without a Checkpoint: then the pod that fetches them checks it."""
    credentials: str | None = None
    """Name of the Secret with the credentials of the store."""
    chat_template_kwargs: ChatTemplateKwargs = field(default_factory=dict, hash=False)
    """Arguments for the chat template that the weights were trained with."""
    reasoning_parser: str | None = None
    """Parser of the reasoning in answers, named as in vLLM; None if there is none, or for a pin."""
    adapter: AdapterRecord | None = None
    """Properties of the adapter; None of a whole model, and of a pin."""
    probe: str | None = None
    """Digest of what the weights predicted when they were published; None of a pin, or without a record."""
    is_merged: bool = False
    """Whether the base model with the adapter is served as a whole model, instead of the adapter."""
    merged: str | None = None
    """Digest of the merged weights; None until they are made."""
    stored_by: str | None = None
    """Name of the Job that stores it, if it is a base model that is served without a Checkpoint."""

    @property
    def is_base(self) -> bool:
        """Whether it is a base model that is served without a Checkpoint."""
        return self.stored_by is not None

    @property
    def artifact(self) -> ArtifactRef:
        """The folder in the store."""
        return ArtifactRef(kind="models" if self.is_base else "checkpoints", digest=self.digest)

    def as_merged(self) -> "WeightsReference":
        """The adapter as a whole model; weights of a whole model are as they are."""
        if self.type == FULL_MODEL:
            return self
        return replace(self, type=FULL_MODEL, adapter=None, is_merged=True)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "WeightsReference":
        """The weights of a Checkpoint."""
        spec = checkpoint.spec
        secret = checkpoint.metadata.annotations.get(STORE_CREDENTIALS)
        lineage = spec.lineage
        return cls(
            spec.uri,
            spec.digest,
            spec.type,
            checkpoint.name,
            lineage.base_model,
            secret,
            cast(ChatTemplateKwargs, lineage.chat_template_kwargs or {}),
            lineage.reasoning_parser,
            lineage.adapter,
            spec.probe,
        )

    @property
    def store(self) -> str:
        """URI of the store of the weights and their base model: all but the kind and the digits."""
        return self.uri.rsplit("/", 2)[0]

    @property
    def label(self) -> str:
        """Name of the weights in messages."""
        base = self.base_model.source if self.is_base and self.base_model is not None else None
        return self.checkpoint or base or short_digest(self.digest)


def short_digest(digest: str) -> str:
    """Prefix of a digest for messages."""
    return digest[:19]


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
