# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: the immutable record of trained weights, with lineage. A user may approve or reject it."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.evaluation import EvaluationStatus, Score
from finetune_operator.api.finetune_job_status import LossPoint
from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    DeletionPolicy,
    Digest,
    Message,
    Model,
    Name,
    Resource,
    ShortName,
    Status,
    Uri,
    immutable_rules,
)
from finetune_operator.api.references import join_revision
from finetune_operator.api.stage_status import RecordedCost
from finetune_operator.api.training import ChatTemplateKwargs, MethodRecord, ResolvedHyperparameters
from finetune_trainer.contract.vocabulary import CheckpointType

MAX_EVALUATIONS: Final = 5
MAX_USERS: Final = 10


class BaseModelRecord(Model):
    """Base model that the Checkpoint was trained from."""

    uri: Annotated[Uri, Field(description="Source of the base model.")]
    revision: Annotated[str | None, Field(description="Commit of a base model at the hub.")] = None
    digest: Annotated[Digest, Field(description="Digest of the base model's files.")]

    @property
    def source(self) -> str:
        """The uri, with the revision after @."""
        return join_revision(self.uri, self.revision)


class JobRecord(Model):
    """FineTuneJob that created the Checkpoint."""

    name: Annotated[ShortName, Field(description="Name of the FineTuneJob.")]
    uid: Annotated[str, Field(max_length=64, description="UID of the FineTuneJob.")]


class AdapterRecord(Model):
    """Properties of an adapter on which it depends whether an engine can serve it."""

    r: Annotated[int, Field(description="Rank of the adapter, as method.lora.r of the run.")]
    dora: Annotated[
        bool | None, Field(description="Whether the adapter was trained with DoRA. Absent: false.")
    ] = None


class Lineage(Model):
    """Inputs that the Checkpoint was made from."""

    base_model: BaseModelRecord
    dataset_version: Annotated[Name, Field(description="DatasetVersion that the run trained on.")]
    job: JobRecord
    parent_checkpoint: Annotated[
        Name | None, Field(description="Checkpoint whose weights training started from.")
    ] = None
    method: Annotated[MethodRecord, Field(description="Training method of the run.")]
    hyperparameters: ResolvedHyperparameters
    chat_template_kwargs: Annotated[
        ChatTemplateKwargs | None,
        Field(
            description="Arguments for the chat template that the run trained and evaluated with. Endpoints"
            " that serve the Checkpoint use them unless a request has its own."
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Parser that separates the reasoning of an answer from its content, named as in vLLM."
            " Absent: the chat template has no reasoning.",
        ),
    ] = None
    adapter: Annotated[
        AdapterRecord | None,
        Field(description="Properties of the adapter. Absent: the weights are a whole model."),
    ] = None
    trainer_image: Annotated[str, Field(max_length=512, description="Trainer image of the train pods.")]


class Approval(Model):
    """Decision of a user on the Checkpoint."""

    state: Annotated[
        Literal["Approved", "Rejected"],
        Field(
            description="Decision. Approved: promote the Checkpoint, even without passed gates, unless the"
            " champion is newer. Rejected: withdraw its promotion."
        ),
    ]
    reason: Annotated[Message, Field(description="Reason for the decision.")] = ""


class _CheckpointFields(Model):
    model_line: Annotated[ShortName, Field(description="Name of the line that the Checkpoint belongs to.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the weights' manifest.")]
    type: Annotated[
        CheckpointType,
        Field(
            description="Kind of weights. Adapter: an adapter for the base model. Full: all weights of the"
            " model."
        ),
    ]
    step: Annotated[int, Field(ge=0, description="Optimizer step of the weights.")]
    epoch: Annotated[float, Field(ge=0, description="Number of epochs up to this step.")]
    uri: Annotated[Uri, Field(description="Folder of the weights in the store.")]
    metrics: Annotated[
        tuple[Score, ...], Field(max_length=16, description="Validation loss at this step.")
    ] = ()
    loss_curve: Annotated[
        tuple[LossPoint, ...] | None,
        Field(max_length=32, description="Loss curve of the run up to this step."),
    ] = None
    probe: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Digest of the folder in the store with the weights' most likely next tokens after a"
            " few fixed prompts, recorded when they were published. Evaluation compares with it. Absent: the"
            " prompts cannot be used with their chat template.",
        ),
    ] = None
    cost: Annotated[
        RecordedCost | None,
        Field(
            description="Device time that the run had used when it recorded its Checkpoints, and its price,"
            " without their evaluation. All Checkpoints of a run have the same cost. Absent: the run used no"
            " devices."
        ),
    ] = None
    lineage: Lineage
    approval: Annotated[Approval | None, Field(description="Approval or rejection by a user. Mutable.")] = (
        None
    )
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="What happens to the stored weights when this record is deleted. Retain: they stay."
            " Delete: they are deleted, once nothing needs them. Mutable."
        ),
    ] = "Retain"


class CheckpointSpec(_CheckpointFields):
    """Content and lineage of the weights, written by the operator. Immutable except `approval` and
    `deletionPolicy`."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *immutable_rules(
            _CheckpointFields,
            mutable=frozenset({"approval", "deletionPolicy"}),
            advice="a Checkpoint is a record of weights: train again to create a new one",
        ),
        CELRule(
            "self.type != 'Adapter' || has(self.lineage.adapter)",
            "lineage.adapter is missing: a Checkpoint of type Adapter records the rank of its adapter",
            "lineage.adapter",
        ),
    )


class CheckpointDisplay(Model):
    """Text for the columns of kubectl get. Programs must not read it."""

    score: Annotated[
        str | None, Field(description="First score of the tuned model, and that of the base model.")
    ] = None
    in_use: Annotated[str | None, Field(description="InferenceDeployments that serve the Checkpoint.")] = None


class CheckpointStatus(Status):
    """Promotion, evaluations and use of the Checkpoint."""

    promoted_at: Annotated[
        datetime | None,
        Field(
            description="Time of the promotion, written once. The champion of a model line is the Checkpoint"
            " with the newest time that is neither rejected nor being deleted."
        ),
    ] = None
    evaluations: Annotated[
        tuple[EvaluationStatus, ...],
        Field(
            max_length=MAX_EVALUATIONS,
            description="Scores of the run that made the Checkpoint, then those of recent Evaluations.",
        ),
    ] = ()
    in_use_by: Annotated[
        tuple[Name, ...],
        Field(
            max_length=MAX_USERS,
            description="InferenceDeployments that serve the Checkpoint, sorted by name; a long list is"
            " truncated.",
        ),
    ] = ()
    display: CheckpointDisplay | None = None
    conditions: Conditions = ()


class Checkpoint(Resource):
    """An immutable record of trained weights."""

    kind: str = "Checkpoint"
    spec: CheckpointSpec
    status: CheckpointStatus = CheckpointStatus()
