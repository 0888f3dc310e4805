# SPDX-License-Identifier: Apache-2.0
"""Status of an Evaluation."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.devicetime import Cost, StageStatus, StageUsage
from finetune_operator.api.evaluationstatus import ComparedChampion, EvaluationStatus
from finetune_operator.api.finetunejobstatus import ProgressStatus, TrainerContract
from finetune_operator.api.meta import Conditions, Digest, Message, Model, Name, Status
from finetune_operator.api.retrystatus import RetryStatus

MAX_EVALUATED: Final = 8


class ResultStore(Model):
    """Store that has the results of one Checkpoint."""

    uri: Annotated[str, Field(max_length=1024, description="URI of the store.")]
    credentials: Annotated[
        str | None, Field(max_length=253, description="Secret with the credentials of the store.")
    ] = None


class EvaluationResolved(Model):
    """Values that the spec left open, chosen once and never changed."""

    dataset_version: Annotated[str | None, Field(description="DatasetVersion that is measured on.")] = None
    dataset_digest: Annotated[str | None, Field(description="Digest of that DatasetVersion.")] = None
    checkpoint_digests: Annotated[
        tuple[Digest, ...] | None,
        Field(max_length=MAX_EVALUATED, description="Digests of the Checkpoints, in the order of the spec."),
    ] = None
    stores: Annotated[
        tuple[ResultStore, ...] | None,
        Field(max_length=MAX_EVALUATED, description="Stores of the results, in the order of the spec."),
    ] = None
    profile: Annotated[str | None, Field(description="ComputeProfile of the pods.")] = None
    trainer_image: Annotated[str | None, Field(description="Image of the pods.")] = None
    trainer_contract: TrainerContract = None


class UnmeasuredCheckpoint(Model):
    """A Checkpoint without scores."""

    checkpoint: Annotated[Name, Field(description="Name of the Checkpoint.")]
    reason: Annotated[str, Field(max_length=64, description="Reason of the failure.")]
    message: Annotated[Message, Field(description="What failed and what to do next.")]


class EvaluationDisplay(Model):
    """Text for the columns of kubectl get. Programs must not read it."""

    checkpoints: Annotated[str | None, Field(description="Number of measured Checkpoints, and of all.")] = (
        None
    )
    score: Annotated[
        str | None,
        Field(
            description="First score of the last measured Checkpoint, and that of its base model.",
        ),
    ] = None


class EvaluationResourceStatus(Status):
    """Observed state of an Evaluation."""

    phase: Annotated[
        str,
        Field(
            max_length=32,
            description="Summary of the conditions for users. Programs must read the conditions instead.",
        ),
    ] = ""
    resolved: EvaluationResolved = EvaluationResolved()
    progress: ProgressStatus | None = None
    live: Annotated[
        ComparedChampion | None,
        Field(
            description="Champion that the current Checkpoint is compared with. Its content is not removed"
            " until the measurement has ended."
        ),
    ] = None
    evaluations: Annotated[
        tuple[EvaluationStatus, ...],
        Field(max_length=MAX_EVALUATED, description="Results, in the order of spec.checkpoints."),
    ] = ()
    unmeasured: Annotated[
        tuple[UnmeasuredCheckpoint, ...],
        Field(
            max_length=MAX_EVALUATED,
            description="Checkpoints whose measurement failed, in the order of spec.checkpoints. The"
            " remaining ones are measured.",
        ),
    ] = ()
    stages: Annotated[
        tuple[StageStatus, ...], Field(max_length=1, description="Times of all pods, once they have ended.")
    ] = ()
    usage: StageUsage | None = None
    retry: RetryStatus | None = None
    cost: Cost | None = None
    display: EvaluationDisplay | None = None
    conditions: Conditions = ()
