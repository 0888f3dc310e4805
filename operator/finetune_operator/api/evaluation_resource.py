# SPDX-License-Identifier: Apache-2.0
"""Evaluation: measures existing Checkpoints on rows of a Dataset. Its spec is immutable."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.compute import DeviceCount, QueueChoice, StepTimeoutSeconds
from finetune_operator.api.evaluation import (
    ComparedChampion,
    EvaluatedRows,
    EvaluationSettings,
    EvaluationStatus,
)
from finetune_operator.api.evaluation_metrics import CustomMetricSources, EvaluationTaskSources
from finetune_operator.api.finetune_job_status import ProgressStatus, TrainerContract
from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    DeletionPolicy,
    Digest,
    Message,
    Model,
    Name,
    Phase,
    Resource,
    Status,
    immutable_rules,
    name_rules,
)
from finetune_operator.api.stage_status import Cost, RetryStatus, StageStatus, StageUsage

MAX_EVALUATED: Final = 8
ADVICE: Final = "an Evaluation is a record: create another one with another name"


class EvaluationCompute(QueueChoice):
    """Devices and queue of the pods."""

    devices: Annotated[
        DeviceCount,
        Field(
            description="Number of devices per pod. With several accelerators, each holds a part of the"
            " layers of the model.",
        ),
    ] = 1
    step_timeout_seconds: Annotated[
        StepTimeoutSeconds | None,
        Field(
            description="Seconds without a finished batch or generated token after which a pod is ended as"
            " hung. The next pod resumes from what was saved. Default: 1800.",
        ),
    ] = None


class _EvaluationFields(EvaluationSettings):
    checkpoints: Annotated[
        tuple[Name, ...],
        Field(
            min_length=1,
            max_length=MAX_EVALUATED,
            description="Checkpoints in the same namespace to measure, one after the other. They may have"
            " different base models.",
        ),
    ]
    dataset: EvaluatedRows
    compute: EvaluationCompute = EvaluationCompute()
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="What happens to the answers, values of rows and pages in the store when the"
            " Evaluation is deleted. Retain: they stay. Delete: they are removed. The scores on the"
            " Checkpoints stay."
        ),
    ] = "Retain"
    suspend: Annotated[
        bool,
        Field(
            description="Whether the Evaluation is suspended. Its pod saves the measured rows and frees its"
            " devices; when the field is false again, the next pod continues after them. Mutable."
        ),
    ] = False
    children_ttl_seconds: Annotated[
        int,
        Field(
            alias="childrenTTLSeconds",
            ge=0,
            le=31536000,
            description="Seconds after the end of the Evaluation until its finished Jobs and their pods are"
            " deleted, with their logs; 0 deletes them at once. The scores stay. Mutable.",
        ),
    ] = 86400


class EvaluationResourceSpec(_EvaluationFields):
    """Desired state of an Evaluation. Immutable except `suspend` and `childrenTTLSeconds`."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *EvaluationSettings.rules,
        *immutable_rules(
            _EvaluationFields, mutable=frozenset({"suspend", "childrenTTLSeconds"}), advice=ADVICE
        ),
        CELRule(
            "self.checkpoints.all(one, self.checkpoints.exists_one(other, other == one))",
            "checkpoints names a Checkpoint twice: name each once",
            "checkpoints",
        ),
    )


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
    custom_metrics: CustomMetricSources = None
    tasks: EvaluationTaskSources = None


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

    phase: Phase = ""
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
        tuple[StageStatus, ...],
        Field(max_length=2, description="Times of evaluate and score, once all their pods have ended."),
    ] = ()
    usage: StageUsage | None = None
    retry: RetryStatus | None = None
    cost: Cost | None = None
    display: EvaluationDisplay | None = None
    conditions: Conditions = ()


class Evaluation(Resource):
    """An evaluation of existing Checkpoints on a Dataset. The scores stay on the Checkpoints."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("Evaluation")
    done_phase: ClassVar[str | None] = "Succeeded"
    keeps_verdict: ClassVar[bool] = True

    kind: str = "Evaluation"
    spec: EvaluationResourceSpec
    status: EvaluationResourceStatus = EvaluationResourceStatus()
