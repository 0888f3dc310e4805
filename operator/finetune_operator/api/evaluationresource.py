# SPDX-License-Identifier: Apache-2.0
"""Evaluation: measures existing Checkpoints on rows of a Dataset. Its spec is immutable."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.compute import DeviceCount, StepTimeoutSeconds
from finetune_operator.api.datasetreference import DatasetReference
from finetune_operator.api.evaluation import EvaluationSettings, Gate
from finetune_operator.api.evaluationresourcestatus import MAX_EVALUATED, EvaluationResourceStatus
from finetune_operator.api.meta import (
    CELRule,
    DeletionPolicy,
    Model,
    Name,
    Resource,
    immutable_rules,
    name_rules,
)
from finetune_operator.api.queueing import QueueChoice
from finetune_trainer.contract.metrics import CUSTOM, TASK
from finetune_trainer.contract.vocabulary import SplitName

ADVICE: Final = "an Evaluation is a record: create another one with another name"


class EvaluatedRows(Model):
    """Rows to measure on."""

    ref: DatasetReference
    split: Annotated[
        SplitName,
        Field(
            description="Split of the DatasetVersion to measure on. A Dataset that is only for evaluation can"
            " have all its rows in train: set split.validation and split.test of the Dataset to 0."
        ),
    ] = "test"


class EvaluationCompute(QueueChoice):
    """ComputeProfile and devices of the evaluate pods."""

    profile: Annotated[
        Name | None,
        Field(description="ComputeProfile of the pods. Default: the cluster's default ComputeProfile."),
    ] = None
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
    gates: Annotated[
        tuple[Gate, ...],
        Field(
            max_length=8,
            description="Gates that each Checkpoint must pass. They decide how the Evaluation ends, and never"
            " promote or withdraw a Checkpoint.",
        ),
    ] = ()
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
        CELRule(
            f"!self.metrics.exists(metric, metric.startsWith('{CUSTOM}/'))"
            f" && !self.gates.exists(gate, gate.metric.startsWith('{CUSTOM}/'))",
            f"only a FineTuneJob has metrics of its own: remove {CUSTOM}/ metrics from metrics and gates",
        ),
        CELRule(
            f"!self.metrics.exists(metric, metric.startsWith('{TASK}/'))"
            f" && !self.gates.exists(gate, gate.metric.startsWith('{TASK}/'))",
            f"only a FineTuneJob has tasks: remove {TASK}/ metrics from metrics and gates",
        ),
    )


class Evaluation(Resource):
    """An evaluation of existing Checkpoints on a Dataset. The scores stay on the Checkpoints."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("Evaluation")

    kind: str = "Evaluation"
    spec: EvaluationResourceSpec
    status: EvaluationResourceStatus = EvaluationResourceStatus()
