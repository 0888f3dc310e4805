"""FineTuneJob: one run, from rows to a promoted checkpoint. A run is a record."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.basemodel import BaseModelReference
from finetune_operator.api.cel import is_none_of, is_one_of
from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.api.finetunejobstatus import FineTuneJobStatus
from finetune_operator.api.hyperparameters import Hyperparameters
from finetune_operator.api.meta import (
    DeletionPolicy,
    Model,
    Name,
    Resource,
    Rule,
    ShortName,
    immutable_part,
    immutable_rules,
    name_rules,
)
from finetune_operator.api.method import Method
from finetune_operator.api.metricrules import (
    OF_PAIRS,
)
from finetune_operator.api.preparation import DataPreparation
from finetune_operator.api.storereference import StoreReference
from finetune_trainer.contract.methods import METHODS, PAIRS, methods_where
from finetune_trainer.contract.vocabulary import listed

ADVICE: Final = "a run is a record: make a new FineTuneJob (…-v2)"

IN_ONE_PROCESS: Final = methods_where(lambda info: not info.distributed)
DISTRIBUTED: Final = methods_where(lambda info: info.distributed)
COMPARING_ROWS: Final = methods_where(lambda info: info.min_batch_rows > 1)
OF_PAIRED_ROWS: Final = methods_where(lambda info: info.rows is PAIRS)


class DatasetReference(Model):
    """A Dataset by name, and which of its versions."""

    name: ShortName
    version: Annotated[
        Name | None,
        Field(description="A DatasetVersion; absent: the newest at start, kept in status.resolved."),
    ] = None


class JobDataset(Model):
    """The rows to train on."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.ref) != has(self.inline)",
            "dataset needs exactly one of ref and inline: name a Dataset, or describe the rows inline",
        ),
    )

    ref: Annotated[DatasetReference | None, Field(description="A Dataset in the same namespace.")] = None
    inline: Annotated[
        DataPreparation | None, Field(description="A source of this run's own, as in a Dataset.")
    ] = None


class Compute(Model):
    """What to run on."""

    profile: Annotated[Name | None, Field(description="A ComputeProfile; absent: the cluster's default.")] = (
        None
    )
    devices: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Devices that each pod of the train stage asks for, at most devices.max of the"
            " ComputeProfile. Each accelerator has a process of its own, and the processes divide a batch"
            " among them; CPU cores are threads of one process. The evaluate stage uses one device, so"
            " a model that needs several to fit cannot be evaluated.",
        ),
    ] = 1
    nodes: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Pods that train together, each with `devices`. Training begins when all of them run;"
            " when one is lost, all go on from the last saved state.",
        ),
    ] = 1
    step_timeout_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=86400,
            description="A train pod that finishes no batch, validation batch or saved state for so long"
            " hangs: it ends, and the next one goes on from the last saved state. Absent: 1800.",
        ),
    ] = None
    max_run_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=31536000,
            description="MUTABLE. Seconds that the train stage may use devices, all its attempts together;"
            " time in a queue or suspended does not count. Then the run is stopped with its state saved,"
            " and continues when this is raised. The ComputeProfile's maxRunSeconds limits it too. Absent:"
            " only that of the profile.",
        ),
    ] = None


class Checkpoints(Model):
    """When resume state is saved, and which weights become Checkpoints beside the best and the final ones."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(has(self.keep) ? self.keep : 0) + (has(self.keepSteps) ? size(self.keepSteps) : 0) <= 8",
            "a run leaves at most 10 Checkpoints, the best and the final one among them: lower keep, or name"
            " fewer keepSteps, so that both together make at most 8",
        ),
        Rule(
            "!has(self.keepSteps) || self.keepSteps.all(one, self.keepSteps.exists_one(other, other == one))",
            "checkpoints.keepSteps names a step twice: name each step once",
            "keepSteps",
        ),
    )

    every_steps: Annotated[
        int | None,
        Field(ge=1, le=1000000, description="Save resume state every so many steps; absent: chosen."),
    ] = None
    keep: Annotated[
        int | None,
        Field(
            ge=1,
            le=8,
            description="Of the steps that are saved every everySteps, the newest so many become Checkpoints"
            " too. Absent: only the best and the final step.",
        ),
    ] = None
    keep_steps: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1000000000)], ...] | None,
        Field(
            max_length=8,
            description="Steps that become Checkpoints in any case, whatever everySteps and keep say.",
        ),
    ] = None


class Promotion(Model):
    """Whether a passing checkpoint becomes the model line's champion."""

    mode: Annotated[
        Literal["Automatic", "Manual"],
        Field(description="Automatic: when all gates pass. Manual: when its Checkpoint is approved."),
    ] = "Automatic"
    without_evaluation: Annotated[
        bool, Field(description="Promote automatically although there are no gates.")
    ] = False


class _FineTuneJobFields(Model):
    model: Annotated[ShortName, Field(description="The model line that its checkpoints belong to.")]
    base_model: BaseModelReference
    dataset: JobDataset
    method: Method = Method()
    hyperparameters: Hyperparameters = Hyperparameters()
    compute: Compute = Compute()
    store: Annotated[StoreReference | None, Field(description="Default: the ComputeProfile's store.")] = None
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Annotated[
        EvaluationSpec | None,
        Field(description="Absent: the checkpoint is neither judged nor promoted by itself."),
    ] = None
    promotion: Promotion = Promotion()
    deletion_policy: Annotated[
        DeletionPolicy,
        Field(
            description="Of the records it makes. Delete: those that are neither promoted nor in use go with"
            " the run, and their content in the store with them."
        ),
    ] = "Retain"
    suspend: Annotated[bool, Field(description="MUTABLE. Stop and free the devices; resume continues.")] = (
        False
    )
    children_ttl_seconds: Annotated[
        int,
        Field(
            alias="childrenTTLSeconds",
            ge=0,
            le=31536000,
            description="MUTABLE. Seconds after the end until finished Jobs and their pods go, with their"
            " logs; 0: at once. The run and its records stay.",
        ),
    ] = 86400


class FineTuneJobSpec(_FineTuneJobFields):
    """Desired state of a run; immutable except `suspend`, `childrenTTLSeconds` and
    `compute.maxRunSeconds`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *immutable_rules(
            _FineTuneJobFields, mutable=frozenset({"suspend", "childrenTTLSeconds", "compute"}), advice=ADVICE
        ),
        immutable_part("compute", Compute, mutable=frozenset({"maxRunSeconds"}), advice=ADVICE),
        Rule(
            f"{is_none_of('self.method.type', IN_ONE_PROCESS)} || self.compute.nodes == 1",
            f"{listed(IN_ONE_PROCESS)} train in one process in this release: leave compute.nodes out,"
            f" or choose {listed(DISTRIBUTED, 'or')}",
            "compute.nodes",
            on_create=True,
        ),
        Rule(
            "!self.promotion.withoutEvaluation || !has(self.evaluation) || size(self.evaluation.gates) == 0",
            "promotion.withoutEvaluation contradicts evaluation.gates: remove one of them",
            "promotion",
        ),
        *(
            Rule(
                f"self.method.type != '{method}' || !has(self.hyperparameters.perDeviceBatchSize)"
                f" || self.hyperparameters.perDeviceBatchSize >= {METHODS[method].min_batch_rows}",
                f"{method} compares the rows of a batch: make hyperparameters.perDeviceBatchSize at least"
                f" {METHODS[method].min_batch_rows}, or leave it out",
                "hyperparameters",
            )
            for method in COMPARING_ROWS
        ),
        Rule(
            f"{is_one_of('self.method.type', OF_PAIRED_ROWS)} || !has(self.evaluation)"
            f" || !self.evaluation.metrics.exists(metric, {is_one_of('metric', OF_PAIRS)})"
            f" && !self.evaluation.gates.exists(gate, {is_one_of('gate.metric', OF_PAIRS)})",
            f"{listed(OF_PAIRS)} needs pairs of answers, as {listed(OF_PAIRED_ROWS)} learn from;"
            " leave it out of evaluation.metrics and evaluation.gates, or choose one of these methods",
            "evaluation",
        ),
    )


class FineTuneJob(Resource):
    """One run: data checked, model trained, judged, and promoted if it clears the bar."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules("FineTuneJob")

    kind: str = "FineTuneJob"
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
