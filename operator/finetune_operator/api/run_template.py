# SPDX-License-Identifier: Apache-2.0
"""Fields and rules that a FineTuneJob and the templates of kinds that make FineTuneJobs have in common."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.compute import Compute
from finetune_operator.api.dataset import Columns, DataSource, RowSource
from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.api.evaluation_metrics import PAIR_METRICS
from finetune_operator.api.meta import (
    NAME_LIMIT,
    CELRule,
    DeletionPolicy,
    Model,
    RequiredByRule,
    ShortName,
    is_one_of,
)
from finetune_operator.api.references import BaseModelReference, DatasetReference, OwnStoreReference
from finetune_operator.api.training import ChatTemplateKwargs, Hyperparameters, Method, RequestedLearningCurve
from finetune_trainer.contract.hyperparameters import OnLongRows
from finetune_trainer.contract.method import PAIRS, objectives_where
from finetune_trainer.contract.vocabulary import DataFormat, join_names

KEY_DIGITS: Final = 8
"""Hexadecimal digits of the key at the end of a run's name, after a hyphen."""
RUN_MAKER_NAME_LIMIT: Final = NAME_LIMIT - KEY_DIGITS - 1
"""The names of runs begin with that of the object that makes them."""

PAIRED_OBJECTIVES: Final = objectives_where(lambda info: info.rows is PAIRS)


class JobDataset(Model):
    """Rows to train on. Set either ref or source."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.ref) != has(self.source)",
            "dataset needs exactly one of ref and source: name a Dataset, or the location of the rows",
        ),
        CELRule(
            "!has(self.ref) || !has(self.format) && !has(self.columns)",
            "dataset.format and dataset.columns describe dataset.source: set them in the Dataset that"
            " dataset.ref names",
        ),
    )

    ref: Annotated[DatasetReference | None, Field(description="Dataset in the same namespace.")] = None
    source: Annotated[
        DataSource | None,
        Field(
            description="Location of rows for this run only. Everything else is prepared by the defaults of a"
            " Dataset: write a Dataset to change it."
        ),
    ] = None
    format: Annotated[
        DataFormat | None,
        Field(description="Format of the source. Default: detected from the content."),
    ] = None
    columns: Annotated[
        Columns | None, Field(description="Names of the columns of the source, as in the files.")
    ] = None
    on_long_rows: Annotated[
        OnLongRows | None,
        Field(
            description="What happens to rows of training and validation with more tokens than"
            " hyperparameters.maxSequenceLength. Drop: they are not used. Fail: the run fails and names the"
            " length that holds them. Truncate: they lose their end. Default: Drop; Fail if more than 10 % of"
            " the rows are longer."
        ),
    ] = None

    @property
    def row_source(self) -> RowSource | None:
        """The source as a Dataset has it; None for a Dataset."""
        if self.source is None:
            return None
        return RowSource(**self.source.model_dump(), format=self.format, columns=self.columns)


class JobValidation(Model):
    """When the run measures its loss on the validation rows, and whether it stops early by it."""

    every_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="Optimizer steps between two validations; the last step is always validated. Default:"
            " after each epoch; in runs with long epochs and without earlyStoppingPatience, about 20 times"
            " per run, at least 100 steps apart.",
        ),
    ] = None
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Validations without a lower loss after which training stops; one validation per"
            " epoch unless everySteps is set. Needs validation rows. Default: no early stopping.",
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

    state_every_steps: Annotated[
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
            description="Optimizer steps to publish as Checkpoints, independent of stateEverySteps and keep."
            " Default: none.",
        ),
    ] = None


class Promotion(Model):
    """Whether and when the evaluated Checkpoint becomes the champion of its model line."""

    mode: Annotated[
        Literal["ByGates", "Manual", "Always", "Never"],
        Field(
            description="What promotes the Checkpoint. ByGates: all gates pass; a run without gates is not"
            " promoted. Manual: all gates pass, and a user sets spec.approval of the Checkpoint. Always: the"
            " end of a run without gates. Never: nothing. A veto blocks all of them, and spec.approval"
            " promotes in every mode except Never."
        ),
    ] = "ByGates"


ChildrenTTLSeconds = Annotated[
    int,
    Field(
        alias="childrenTTLSeconds",
        ge=0,
        le=31536000,
        description="Seconds after the end of the run until its finished Jobs and their pods are"
        " deleted, with their logs; 0 deletes them at once. The run and its records stay. Mutable.",
    ),
]


class RunTemplateFields(Model):
    """Fields of a run that a template of runs has too."""

    model_line: Annotated[
        ShortName,
        RequiredByRule(
            "modelLine names the line that the result belongs to; the model to train goes into baseModel.uri"
        ),
        Field(
            description="Name of the line that the run's Checkpoints belong to. Endpoints follow a line by"
            " this name. Required."
        ),
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
    validation: JobValidation = JobValidation()
    compute: Compute = Compute()
    store: Annotated[
        OwnStoreReference | None,
        Field(description="Store of the run. Default: the store of the ComputeProfile."),
    ] = None
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Annotated[
        EvaluationSettings | None,
        Field(
            description="Evaluation of the trained model on held-out rows. Default: no evaluation. The"
            " Checkpoint is then promoted only by promotion.mode: Always or by a user's approval."
        ),
    ] = None
    learning_curve: Annotated[
        RequestedLearningCurve | None,
        Field(
            description="Further trainings on parts of the rows, to see whether more rows would help."
            " Default: none."
        ),
    ] = None
    promotion: Promotion = Promotion()
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="What happens to the records of the run, its Checkpoints and the DatasetVersion of"
            " dataset.source, when the run is deleted. Retain: they stay. Delete: those that are neither"
            " promoted nor in use are deleted, with their content in the store."
        ),
    ] = "Retain"


RUN_RULES: Final[tuple[CELRule, ...]] = (
    CELRule(
        "!has(self.compute.sharding) || self.compute.sharding != 'Sharded' || !has(self.method.lora)"
        " || !has(self.method.lora.dora) || !self.method.lora.dora",
        "the weights of DoRA are replicated in this release: remove compute.sharding or method.lora.dora",
        "compute.sharding",
    ),
    CELRule(
        "self.promotion.mode != 'Always' || !has(self.evaluation) || size(self.evaluation.gates) == 0",
        "promotion.mode: Always contradicts evaluation.gates: remove the gates, or choose mode: ByGates",
        "promotion.mode",
    ),
    CELRule(
        f"{is_one_of('self.method.objective', PAIRED_OBJECTIVES)} || !has(self.evaluation)"
        " || has(self.evaluation.dataset)"
        f" || !self.evaluation.metrics.exists(metric, {is_one_of('metric', PAIR_METRICS)})"
        f" && !self.evaluation.gates.exists(gate, {is_one_of('gate.metric', PAIR_METRICS)})",
        f"{join_names(PAIR_METRICS)} needs pairs of a chosen and a rejected answer: remove it from"
        f" evaluation.metrics and evaluation.gates, choose method.objective"
        f" {join_names(PAIRED_OBJECTIVES, 'or')}, or name a Dataset with pairs in evaluation.dataset",
        "evaluation",
    ),
    CELRule(
        "!has(self.evaluation) || !has(self.evaluation.sliceBy) || has(self.dataset.ref)"
        " || has(self.evaluation.dataset)",
        "evaluation.sliceBy needs a column that is kept with the rows: write a Dataset with keepColumns,"
        " and name it in dataset.ref",
        "evaluation.sliceBy",
    ),
)
"""Rules of the fields of a run that its templates have too."""


class RunTemplateSpec(RunTemplateFields):
    """Spec of the runs to create, as in a FineTuneJob."""

    rules: ClassVar[tuple[CELRule, ...]] = RUN_RULES

    children_ttl_seconds: ChildrenTTLSeconds = 86400


class RunTemplate(Model):
    """Template of the runs to create."""

    spec: RunTemplateSpec
