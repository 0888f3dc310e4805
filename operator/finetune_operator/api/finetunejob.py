"""FineTuneJob: one run, from rows to a promoted checkpoint. A run is a record."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.dataset import DataPreparation, StoreReference
from finetune_operator.api.finetunejobstatus import FineTuneJobStatus, LoRA, Preference
from finetune_operator.api.meta import (
    DeletionPolicy,
    Digest,
    Model,
    Name,
    Reserved,
    ReservedValues,
    Resource,
    Rule,
    SecretReference,
    ShortName,
    Uri,
    immutable_part,
    immutable_rules,
    name_rules,
)
from finetune_operator.api.metricrules import (
    DESCRIPTION,
    FRACTION_ADVICE,
    LOWER_IS_BETTER,
    OF_PAIRS,
    OTHERS,
    is_one_of,
    listed,
)
from finetune_trainer.contract.metrics import DEFAULT_METRICS, Metric

ADVICE: Final = "a run is a record: make a new FineTuneJob (…-v2)"

BASE_MODEL_SCHEME_RULE: Final = Rule(
    "!has(self.uri) || self.uri.startsWith('pvc://') || self.uri.startsWith('hf://')"
    " || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || self.uri.startsWith('abfs://')",
    "baseModel.uri must begin with pvc://, hf://, s3://, gs:// or abfs://, for example pvc://models/gemma-3-270m;"
    " put a model from a web server on a claim or in a bucket, or write hf:// and name a hub's mirror as"
    " endpoint in the credentials Secret",
    "uri",
)


REVISION_RULE: Final = Rule(
    "!has(self.revision) || has(self.uri) && self.uri.startsWith('hf://')",
    "baseModel.revision is for models at the hub: remove it, or name the model with hf://",
    "revision",
)


class BaseModelReference(Model):
    """The model to start from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.uri) != has(self.checkpoint)",
            "baseModel needs exactly one of uri and checkpoint: give one and leave the other out",
        ),
        BASE_MODEL_SCHEME_RULE,
        REVISION_RULE,
    )

    uri: Annotated[
        Uri | None,
        Field(
            description="Folder with config.json, tokenizer and safetensors: pvc://CLAIM/FOLDER in the same"
            " namespace, hf://ORG/NAME, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or abfs://CONTAINER/FOLDER. A"
            " model from the network is kept in the store, where later runs find it."
        ),
    ] = None
    revision: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            description="Branch, tag or commit at the hub; absent: its main branch. The commit that it stood"
            " for is recorded.",
        ),
    ] = None
    digest: Annotated[
        Digest | None,
        Field(description="Digest that the model's files must have; recorded in status.resolved."),
    ] = None
    checkpoint: Annotated[
        Name | None,
        Field(
            description="Continue from the weights of this Checkpoint, in the same namespace and in the run's"
            " store; the base model is that which it was trained from. An adapter goes on with any method but"
            " Full, a whole model with Full."
        ),
    ] = None
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(description="Secret of type finetune.dev/credentials with what the model's server asks for."),
    ] = None


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


class Method(Model):
    """How the weights are changed."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.lora) || self.type != 'Full'",
            "method.lora has no meaning with type: Full; remove it or choose type: LoRA",
            "lora",
        ),
        Rule(
            "!has(self.preference) || self.type in ['DPO', 'KTO', 'ORPO']",
            "method.preference is for rows that judge answers; remove it or choose type: DPO, KTO or ORPO",
            "preference",
        ),
        Rule(
            "!has(self.preference) || self.type == 'KTO'"
            " || !has(self.preference.desirableWeight) && !has(self.preference.undesirableWeight)",
            "desirableWeight and undesirableWeight are of KTO, whose rows are good or bad; remove them or"
            " choose type: KTO",
            "preference",
        ),
    )

    type: Annotated[
        Literal["LoRA", "QLoRA", "Full", "DPO", "KTO", "ORPO"],
        Field(
            description="What is learned, and from which rows. Prompts with completions, and chats: LoRA"
            " trains an adapter, QLoRA the same over a base model in 4 bits, Full all weights. Pairs of a"
            " chosen and a rejected answer: DPO and ORPO. Answers with a label true or false: KTO. These"
            " three train an adapter, without dropout."
        ),
    ] = "LoRA"
    lora: Annotated[
        LoRA | None,
        Field(
            description="Adapter settings; absent: the defaults. With baseModel.checkpoint what is left out,"
            " or has its default, is as in the adapter that is continued."
        ),
    ] = None
    preference: Annotated[
        Preference | None, Field(description="Settings of DPO, KTO and ORPO; absent: the defaults.")
    ] = None


class Hyperparameters(Model):
    """What is left out is chosen once by a documented rule and kept in status.resolved."""

    epochs: Annotated[int | None, Field(ge=1, le=1000, description="Passes over the training rows.")] = None
    learning_rate: Annotated[float | None, Field(gt=0, le=1, description="Peak learning rate.")] = None
    per_device_batch_size: Annotated[
        int | None, Field(ge=1, le=4096, description="Rows a device a step.")
    ] = None
    gradient_accumulation_steps: Annotated[
        int | None, Field(ge=1, le=4096, description="Batches summed into one optimizer step.")
    ] = None
    max_sequence_length: Annotated[
        int | None, Field(ge=16, le=1048576, description="Tokens a row; longer rows are cut.")
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=2147483647, description="Seed of shuffling and dropout.")] = (
        None
    )
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Epochs without a lower validation loss after which training ends; absent: it never"
            " ends early. Needs validation rows.",
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Field(
            description="Compute activations again in the backward pass instead of keeping them: less memory,"
            " more time, the same weights. Absent: false."
        ),
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


class Gate(Model):
    """A bar that the tuned model must clear."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.min) || has(self.max) || has(self.minGain)",
            "a gate needs a bound: add min, max or minGain, for example min: 0.8",
        ),
        Rule(
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            "no value is at least min and at most max: make min the smaller one, or leave one of them out",
            "min",
        ),
        Rule(
            "has(self.minGain) == has(self.over)",
            "minGain and over belong together: give both, for example minGain: 0.1 and over: Base",
        ),
        Rule(
            f"{is_one_of('self.metric', OTHERS)} || ((!has(self.min) || self.min >= 0.0 && self.min <= 1.0)"
            " && (!has(self.max) || self.max >= 0.0 && self.max <= 1.0)"
            " && (!has(self.minGain) || self.minGain >= -1.0 && self.minGain <= 1.0))",
            FRACTION_ADVICE,
        ),
    )

    metric: Annotated[Metric, Field(description=DESCRIPTION)]
    min: Annotated[float | None, Field(description="The tuned model's value must be at least this.")] = None
    max: Annotated[float | None, Field(description="The tuned model's value must be at most this.")] = None
    min_gain: Annotated[
        float | None,
        Field(
            description="The tuned model must be better by at least this much (for"
            f" {listed(LOWER_IS_BETTER)}: lower); 0: by more than 0."
        ),
    ] = None
    over: Annotated[
        Literal["Base", "Prompted", "Live"] | None,
        ReservedValues.of("Prompted", "Live"),
        Field(description="What minGain is measured against."),
    ] = None
    confidence: Annotated[
        float | None, Reserved(), Field(gt=0.5, lt=1, description="Decide by the bound of this interval.")
    ] = None


class EvaluationSpec(Model):
    """How the trained model is judged on the held-out split."""

    profile: Annotated[Name | None, Field(description="ComputeProfile of the evaluate stage.")] = None
    metrics: Annotated[
        tuple[Metric, ...], Field(min_length=1, max_length=8, description="What to measure.")
    ] = DEFAULT_METRICS
    compare: Annotated[
        tuple[Literal["Base", "Prompted", "Live"], ...],
        ReservedValues.of("Prompted", "Live"),
        Field(max_length=3, description="What the tuned model is set beside."),
    ] = ("Base",)
    gates: Annotated[tuple[Gate, ...], Field(max_length=16, description="All must pass.")] = ()


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
            "!(self.method.type in ['DPO', 'KTO', 'ORPO']) || self.compute.nodes == 1",
            "DPO, KTO and ORPO train in one process in this release: leave compute.nodes out, or choose LoRA,"
            " QLoRA or Full",
            "compute.nodes",
            on_create=True,
        ),
        Rule(
            "!self.promotion.withoutEvaluation || !has(self.evaluation) || size(self.evaluation.gates) == 0",
            "promotion.withoutEvaluation contradicts evaluation.gates: remove one of them",
            "promotion",
        ),
        Rule(
            "self.method.type != 'KTO' || !has(self.hyperparameters.perDeviceBatchSize)"
            " || self.hyperparameters.perDeviceBatchSize >= 2",
            "KTO compares the rows of a batch: make hyperparameters.perDeviceBatchSize at least 2, or leave"
            " it out",
            "hyperparameters",
        ),
        Rule(
            "self.method.type in ['DPO', 'ORPO'] || !has(self.evaluation)"
            f" || !self.evaluation.metrics.exists(metric, {is_one_of('metric', OF_PAIRS)})"
            f" && !self.evaluation.gates.exists(gate, {is_one_of('gate.metric', OF_PAIRS)})",
            f"{listed(OF_PAIRS)} needs pairs of answers, as DPO and ORPO learn from; leave it out of"
            " evaluation.metrics and evaluation.gates, or choose one of these methods",
            "evaluation",
        ),
    )


class FineTuneJob(Resource):
    """One run: data checked, model trained, judged, and promoted if it clears the bar."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules("FineTuneJob")

    kind: str = "FineTuneJob"
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
