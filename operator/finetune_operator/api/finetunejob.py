# SPDX-License-Identifier: Apache-2.0
"""FineTuneJob: one run, from rows to a promoted Checkpoint. Its spec is immutable."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.basemodel import BaseModelReference
from finetune_operator.api.cel import is_one_of
from finetune_operator.api.chattemplate import ChatTemplateKwargs
from finetune_operator.api.compute import Compute
from finetune_operator.api.datasetreference import DatasetReference
from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.api.finetunejobstatus import FineTuneJobStatus
from finetune_operator.api.hyperparameters import Hyperparameters
from finetune_operator.api.meta import (
    CELRule,
    DeletionPolicy,
    Model,
    Resource,
    ShortName,
    immutable_part,
    immutable_rules,
    name_rules,
)
from finetune_operator.api.method import Method
from finetune_operator.api.metricrules import (
    PAIR_METRICS,
)
from finetune_operator.api.preparation import (
    PREPARATION_RULES,
    Columns,
    DataPreparation,
    DataSource,
    RowSource,
)
from finetune_operator.api.storereference import OwnStoreReference
from finetune_trainer.contract.methods import PAIRS, methods_where
from finetune_trainer.contract.vocabulary import DataFormat, listed

ADVICE: Final = "a run is a record: create a new FineTuneJob (…-v2)"

PAIRED_METHODS: Final = methods_where(lambda info: info.rows is PAIRS)


class InlineData(DataPreparation):
    """One source of rows, and how to prepare them."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *PREPARATION_RULES,
        CELRule(
            "!has(self.template) || !has(self.columns) || !has(self.columns.prompt)",
            "template and columns.prompt exclude each other: both define the prompt; remove one",
            "template",
        ),
    )

    source: DataSource
    format: Annotated[
        DataFormat | None,
        Field(description="Format of the source. Default: detected from the content."),
    ] = None
    columns: Columns | None = None

    @property
    def row_source(self) -> RowSource:
        """The source as a Dataset has it."""
        return RowSource(**self.source.model_dump(), format=self.format, columns=self.columns)


class JobDataset(Model):
    """Rows to train on. Set either ref or inline."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.ref) != has(self.inline)",
            "dataset needs exactly one of ref and inline: name a Dataset, or describe the rows inline",
        ),
    )

    ref: Annotated[DatasetReference | None, Field(description="Dataset in the same namespace.")] = None
    inline: Annotated[
        InlineData | None,
        Field(
            description="Source of rows for this run only, and how to prepare them, as in the spec of a"
            " Dataset."
        ),
    ] = None


class Checkpoints(Model):
    """How often resume state is saved, and which weights become Checkpoints in addition to best and final."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "(has(self.keep) ? self.keep : 0) + (has(self.keepSteps) ? size(self.keepSteps) : 0) <= 8",
            "checkpoints.keep plus the number of checkpoints.keepSteps must be at most 8, because a run"
            " creates at most 10 Checkpoints including best and final: lower keep, or name fewer keepSteps",
        ),
        CELRule(
            "!has(self.keepSteps) || self.keepSteps.all(one, self.keepSteps.exists_one(other, other == one))",
            "checkpoints.keepSteps names a step twice: name each step once",
            "keepSteps",
        ),
    )

    every_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000000,
            description="Number of optimizer steps between saves of the resume state. Default: a tenth of"
            " all steps, at least 10.",
        ),
    ] = None
    keep: Annotated[
        int | None,
        Field(
            ge=1,
            le=8,
            description="Number of most recent periodic saves to publish as Checkpoints, in addition to best"
            " and final. Default: none.",
        ),
    ] = None
    keep_steps: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1000000000)], ...] | None,
        Field(
            max_length=8,
            description="Optimizer steps to publish as Checkpoints, independent of everySteps and keep."
            " Default: none.",
        ),
    ] = None


class Promotion(Model):
    """Whether and when the evaluated Checkpoint becomes the champion of its model line."""

    mode: Annotated[
        Literal["Automatic", "Manual"],
        Field(
            description="Trigger of the promotion. Automatic: all gates pass. Manual: a user sets"
            " spec.approval of the Checkpoint."
        ),
    ] = "Automatic"
    without_evaluation: Annotated[
        bool, Field(description="Whether mode Automatic also promotes a run without gates.")
    ] = False


class _FineTuneJobFields(Model):
    model: Annotated[
        ShortName,
        Field(description="Model line of the run's Checkpoints. Endpoints follow a model line by this name."),
    ]
    base_model: BaseModelReference
    dataset: JobDataset
    method: Method = Method()
    chat_template_kwargs: Annotated[
        ChatTemplateKwargs | None,
        Field(
            description="Arguments for the chat template of the base model, such as enable_thinking: false."
            " Training, evaluation and endpoints that serve the Checkpoints use the same ones. Values are"
            " strings, numbers or booleans. Default: those of the Checkpoint that the run continues from,"
            " else none."
        ),
    ] = None
    hyperparameters: Hyperparameters = Hyperparameters()
    compute: Compute = Compute()
    store: Annotated[
        OwnStoreReference | None,
        Field(description="Store of the run. Default: the store of the ComputeProfile."),
    ] = None
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Annotated[
        EvaluationSpec | None,
        Field(
            description="Evaluation of the trained model on the test split. Default: no evaluation. The"
            " Checkpoint is then promoted only by promotion.withoutEvaluation or by a user's approval."
        ),
    ] = None
    promotion: Promotion = Promotion()
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="What happens to the records of the run, its Checkpoints and the DatasetVersion of"
            " inline data, when the run is deleted. Retain: they stay. Delete: those that are neither"
            " promoted nor in use are deleted, with their content in the store."
        ),
    ] = "Retain"
    suspend: Annotated[
        bool,
        Field(
            description="Whether the run is suspended. Its pods stop and free their devices; when the field"
            " is false again, training resumes from the last saved state. Mutable."
        ),
    ] = False
    children_ttl_seconds: Annotated[
        int,
        Field(
            alias="childrenTTLSeconds",
            ge=0,
            le=31536000,
            description="Seconds after the end of the run until its finished Jobs and their pods are"
            " deleted, with their logs; 0 deletes them at once. The run and its records stay. Mutable.",
        ),
    ] = 86400


class FineTuneJobSpec(_FineTuneJobFields):
    """Desired state of a run. Immutable except `suspend`, `childrenTTLSeconds` and
    `compute.maxRunSeconds`."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *immutable_rules(
            _FineTuneJobFields, mutable=frozenset({"suspend", "childrenTTLSeconds", "compute"}), advice=ADVICE
        ),
        immutable_part("compute", Compute, mutable=frozenset({"maxRunSeconds"}), advice=ADVICE),
        CELRule(
            "!has(self.compute.sharding) || self.compute.sharding != 'Sharded' || !has(self.method.lora)"
            " || !self.method.lora.dora",
            "the weights of DoRA are replicated in this release: remove compute.sharding or method.lora.dora",
            "compute.sharding",
        ),
        CELRule(
            "!self.promotion.withoutEvaluation || !has(self.evaluation) || size(self.evaluation.gates) == 0",
            "promotion.withoutEvaluation contradicts evaluation.gates: remove one of them",
            "promotion",
        ),
        CELRule(
            f"{is_one_of('self.method.type', PAIRED_METHODS)} || !has(self.evaluation)"
            f" || !self.evaluation.metrics.exists(metric, {is_one_of('metric', PAIR_METRICS)})"
            f" && !self.evaluation.gates.exists(gate, {is_one_of('gate.metric', PAIR_METRICS)})",
            f"{listed(PAIR_METRICS)} needs pairs of a chosen and a rejected answer: remove it from"
            f" evaluation.metrics and evaluation.gates, or choose method.type {listed(PAIRED_METHODS, 'or')}",
            "evaluation",
        ),
        CELRule(
            "!has(self.evaluation) || !has(self.evaluation.sliceBy) || !has(self.dataset.inline)"
            " || self.dataset.inline.keepColumns.exists(name, name == self.evaluation.sliceBy)",
            "evaluation.sliceBy names a column that the rows do not keep: add it to"
            " dataset.inline.keepColumns",
            "evaluation.sliceBy",
        ),
    )


class FineTuneJob(Resource):
    """A fine-tuning run: prepare rows, train a model, evaluate it, and promote it if it passes its gates."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("FineTuneJob")

    kind: str = "FineTuneJob"
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
