"""Checkpoint: the immutable record of trained weights, with lineage; a person may approve or reject it."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.evaluationstatus import EvaluationStatus, Score
from finetune_operator.api.finetunejobstatus import LossPoint
from finetune_operator.api.hyperparameters import ResolvedHyperparameters
from finetune_operator.api.meta import (
    Conditions,
    DeletionPolicy,
    Digest,
    Message,
    Model,
    Name,
    Resource,
    Rule,
    ShortName,
    Status,
    Uri,
    immutable_rules,
)
from finetune_trainer.contract.vocabulary import CheckpointType

MAX_EVALUATIONS: Final = 5
MAX_USERS: Final = 10


class BaseModelRecord(Model):
    """The base model a checkpoint was trained from."""

    uri: Uri
    revision: Annotated[str | None, Field(description="Commit at the hub.")] = None
    digest: Digest


class JobRecord(Model):
    """The run that made a checkpoint."""

    name: ShortName
    uid: Annotated[str, Field(max_length=64)]


class Lineage(Model):
    """Everything a checkpoint came from."""

    base_model: BaseModelRecord
    dataset_version: Name
    job: JobRecord
    parent_checkpoint: Annotated[
        Name | None, Field(description="The Checkpoint whose weights training began from.")
    ] = None
    hyperparameters: ResolvedHyperparameters
    trainer_image: Annotated[str, Field(max_length=512)]


class Approval(Model):
    """A person's word."""

    state: Literal["Approved", "Rejected"]
    reason: Message = ""


class _CheckpointFields(Model):
    model: Annotated[ShortName, Field(description="The model line.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the weights' manifest.")]
    type: CheckpointType
    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[float, Field(ge=0)]
    uri: Annotated[Uri, Field(description="Folder in the store.")]
    metrics: Annotated[tuple[Score, ...], Field(max_length=16, description="Losses at this step.")] = ()
    loss_curve: Annotated[
        tuple[LossPoint, ...] | None,
        Field(max_length=32, description="Losses of the run up to this step."),
    ] = None
    probe: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Not written by this release. What the weights answer to a fixed prompt.",
        ),
    ] = None
    lineage: Lineage
    approval: Annotated[Approval | None, Field(description="MUTABLE. Approve or reject by hand.")] = None
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="MUTABLE. Delete: the stored weights go with this record, once nothing needs them."
        ),
    ] = "Retain"


class CheckpointSpec(_CheckpointFields):
    """Content and lineage; written by the operator. Immutable except `approval` and `deletionPolicy`."""

    rules: ClassVar[tuple[Rule, ...]] = immutable_rules(
        _CheckpointFields,
        mutable=frozenset({"approval", "deletionPolicy"}),
        advice="a Checkpoint is a record of weights: train again and a new one is made",
    )


class CheckpointDisplay(Model):
    """Text for `kubectl get`; for eyes only."""

    score: str | None = None
    in_use: str | None = None


class CheckpointStatus(Status):
    """Where the checkpoint stands."""

    promoted_at: Annotated[
        datetime | None, Field(description="Written once; the newest is the champion.")
    ] = None
    evaluations: Annotated[tuple[EvaluationStatus, ...], Field(max_length=MAX_EVALUATIONS)] = ()
    in_use_by: Annotated[
        tuple[Name, ...], Field(max_length=MAX_USERS, description="InferenceDeployments serving it.")
    ] = ()
    display: CheckpointDisplay | None = None
    conditions: Conditions = ()


class Checkpoint(Resource):
    """An immutable record of trained weights."""

    kind: str = "Checkpoint"
    spec: CheckpointSpec
    status: CheckpointStatus = CheckpointStatus()
