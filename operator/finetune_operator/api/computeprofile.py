"""ComputeProfile: cluster-scoped; the platform team's menu of what runs can run on."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import (
    Conditions,
    Model,
    Name,
    Reserved,
    ReservedValues,
    Resource,
    Rule,
    Status,
    name_rules,
    pattern_advice,
)
from finetune_operator.api.storereference import StoreReference

DEFAULT_PROFILE_LABEL: Final = "finetune.dev/is-default-profile"
"""Exactly one ComputeProfile may carry this annotation or label with the value `true`."""

QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
LABEL_VALUE: Final = r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$"
CURRENCY: Final = r"^[A-Z]{3}$"

Quantity = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=QUANTITY,
        json_schema_extra=pattern_advice(
            QUANTITY, "write a Kubernetes quantity: a number and a unit, for example 500m, 2 or 16Gi"
        ),
    ),
]
ImageName = Annotated[str, Field(min_length=1, max_length=512)]
LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=LABEL_VALUE,
        json_schema_extra=pattern_advice(
            LABEL_VALUE, "a label value has letters, digits, '-', '_' and '.' only, for example NVIDIA-A100"
        ),
    ),
]


class Devices(Model):
    """The accelerator that train, evaluate and serve pods ask for."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.resource == 'cpu'"
            " || self.resource.matches(r'^[a-z0-9][-.a-z0-9]*/[A-Za-z0-9][-_.A-Za-z0-9]*$')",
            "devices.resource is cpu or an extended resource with its domain, for example nvidia.com/gpu",
            "resource",
        ),
    )

    resource: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            description="Extended resource such as nvidia.com/gpu, or cpu: then a device is one CPU core.",
        ),
    ] = "nvidia.com/gpu"
    max: Annotated[int, Field(ge=1, le=64, description="Most devices that one pod may ask for.")] = 8


class Toleration(Model):
    """A `v1.Toleration` of device pods."""

    # What these rules refuse, the API server would refuse in every pod.
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            "a toleration without a key needs operator: Exists; with Equal give the key",
        ),
        Rule(
            "!has(self.value) || self.operator == 'Equal'",
            "a toleration with operator: Exists has no value: remove value or choose operator: Equal",
            "value",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect: NoExecute; remove it for other effects",
            "tolerationSeconds",
        ),
    )

    key: Annotated[str | None, Field(max_length=253)] = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class PerStage(Model):
    """One name for each kind of work."""

    prepare: Name | None = None
    train: Name | None = None
    evaluate: Name | None = None


class PriorityClasses(PerStage):
    """PriorityClass names."""

    serve: Name | None = None


class Images(Model):
    """Images that replace the operator's defaults."""

    trainer: ImageName | None = None
    engine: Annotated[ImageName | None, Reserved(), Field(description="Image of the VLLM engine.")] = None


class PodResources(Model):
    """What one pod requests; but for CPU it is also the limit."""

    cpu: Quantity
    memory: Quantity
    ephemeral_storage: Annotated[
        Quantity | None,
        Field(
            description="Room on the node's disk for models, and for what is read from a bucket or uploaded"
            " to one; absent: what the namespace's LimitRange says."
        ),
    ] = None

    @property
    def limited(self) -> dict[str, str]:
        """What is requested and limited alike, by Kubernetes' names."""
        storage = {"ephemeral-storage": self.ephemeral_storage} if self.ephemeral_storage else {}
        return {"memory": self.memory, **storage}


class StageResources(Model):
    """CPU and memory beside the devices; absent: the operator's defaults."""

    prepare: PodResources | None = None
    preflight: PodResources | None = None
    train: PodResources | None = None
    evaluate: PodResources | None = None
    serve: PodResources | None = None


class ComputeProfileSpec(Model):
    """What a platform team offers under one name."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.nodeSelector.all(key,"
            " key.matches(r'^([-.a-z0-9]+/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$'))",
            "a key of nodeSelector is a label's name, for example nvidia.com/gpu.product:"
            " see kubectl get nodes --show-labels",
            "nodeSelector",
        ),
    )

    devices: Devices = Devices()
    resources: Annotated[StageResources, Field(description="CPU and memory for each stage's pod.")] = (
        StageResources()
    )
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32, description="Of device pods.")] = (
        Field(default={})
    )
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, description="Of device pods.")] = ()
    runtime_class_name: Annotated[Name | None, Field(description="RuntimeClass of device pods.")] = None
    queues: Annotated[PerStage | None, Field(description="Kueue LocalQueue for each stage.")] = None
    priority_classes: Annotated[
        PriorityClasses | None, Field(description="PriorityClass for each stage.")
    ] = None
    images: Images = Images()
    trainer_contract: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Version of the contract that images.trainer reads; without images.trainer it has no"
            " effect.",
        ),
    ] = 1
    engine: Annotated[
        Literal["VLLM", "Transformers"],
        ReservedValues.of("VLLM"),
        Field(description="Serving engine. Transformers: in the trainer image, for CPU and small models."),
    ] = "Transformers"
    store: Annotated[StoreReference | None, Field(description="Default store of runs with this profile.")] = (
        None
    )
    single_node: Annotated[
        bool, Field(description="All pods run on one node, so a ReadWriteOnce claim can be the store.")
    ] = False
    shared_memory: Annotated[Quantity | None, Field(description="Size of /dev/shm in train pods.")] = None
    price_per_device_hour: Annotated[float | None, Field(ge=0, description="For status.cost.")] = None
    currency: Annotated[
        str | None,
        Field(
            min_length=3,
            max_length=3,
            pattern=CURRENCY,
            json_schema_extra=pattern_advice(
                CURRENCY, "write the three capitals of ISO 4217, for example EUR"
            ),
            description="Of pricePerDeviceHour.",
        ),
    ] = None
    allowed_namespaces: Annotated[
        tuple[Name, ...], Field(max_length=256, description="Who may use it; empty: every namespace.")
    ] = ()
    allow_custom_code: Annotated[
        bool | None, Reserved(), Field(description="Allow the user's own training code.")
    ] = None
    allow_remote_code: Annotated[
        bool | None, Reserved(), Field(description="Allow code shipped with a model.")
    ] = None
    max_run_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=31536000,
            description="Seconds that the train stage of one run may use devices, all its attempts together;"
            " time in a queue or suspended does not count. Then the run is stopped with its state saved. A"
            " run may ask for less with compute.maxRunSeconds. Absent: no limit.",
        ),
    ] = None
    checkpoint_history_limit: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Number of most recent Checkpoints to keep in each model line, of ended runs with"
            " this profile. Older ones are deleted, with their stored weights where their deletionPolicy is"
            " Delete, unless they were promoted, are the one that their run stands for, are in use or"
            " pinned, another Checkpoint was trained from them, or anyone else has edited them."
            " Absent: all are kept.",
        ),
    ] = None
    max_concurrent_rollouts: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Endpoints on this profile, in all namespaces, that may start a new revision beside"
            " what they serve at the same time; the others wait. Absent: no limit.",
        ),
    ] = None


class ComputeProfileStatus(Status):
    """Observed state of a profile."""

    conditions: Conditions = ()


class ComputeProfile(Resource):
    """The platform team's menu entry."""

    rules: ClassVar[tuple[Rule, ...]] = name_rules("ComputeProfile")

    kind: str = "ComputeProfile"
    spec: ComputeProfileSpec = ComputeProfileSpec()
    status: ComputeProfileStatus = ComputeProfileStatus()

    @property
    def is_default(self) -> bool:
        marks = (self.metadata.annotations, self.metadata.labels)
        return any(mark.get(DEFAULT_PROFILE_LABEL) == "true" for mark in marks)
