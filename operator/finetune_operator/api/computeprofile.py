"""ComputeProfile: cluster-scoped; what the platform team offers to runs and endpoints."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.devices import DeviceFacts, Devices, LabelValue
from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    Model,
    Name,
    Reserved,
    Resource,
    Status,
    name_rules,
    pattern_advice,
)
from finetune_operator.api.modelcache import ModelCache
from finetune_operator.api.podresources import Quantity, StageResources
from finetune_operator.api.queueing import PerWorkload, Queueing
from finetune_operator.api.serving import EngineArgumentName
from finetune_operator.api.storereference import StoreReference
from finetune_trainer.contract.serving import EngineName

DEFAULT_PROFILE_LABEL: Final = "finetune.dev/is-default-profile"
"""At most one ComputeProfile may have this annotation or label with the value `true`."""

BUILT_IN: Final = "Transformers"
"""Engine that is part of the trainer image."""

CURRENCY: Final = r"^[A-Z]{3}$"

ImageName = Annotated[str, Field(min_length=1, max_length=512)]


class Toleration(Model):
    """Toleration of pods that use devices, in the form of v1.Toleration."""

    # Otherwise the API server would refuse every pod with such a toleration.
    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.key) || self.operator == 'Exists'",
            "a toleration without a key needs operator: Exists; for operator: Equal add the key",
        ),
        CELRule(
            "!has(self.value) || self.operator == 'Equal'",
            "a toleration with operator: Exists must not have a value: remove value or choose operator:"
            " Equal",
            "value",
        ),
        CELRule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect: NoExecute; remove it for other effects",
            "tolerationSeconds",
        ),
    )

    key: Annotated[
        str | None,
        Field(max_length=253, description="Key of the taint. Absent: all taints, with operator Exists."),
    ] = None
    operator: Annotated[
        Literal["Exists", "Equal"],
        Field(description="Exists: the taint may have any value. Equal: the taint must have `value`."),
    ] = "Equal"
    value: Annotated[LabelValue | None, Field(description="Value of the taint, with operator Equal.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="Effect of the taint. Absent: all effects."),
    ] = None
    toleration_seconds: Annotated[
        int | None,
        Field(
            description="Seconds that a running pod stays on the node, with effect NoExecute. Absent: no"
            " limit."
        ),
    ] = None


class Images(Model):
    """Images that replace the operator's defaults."""

    trainer: Annotated[
        ImageName | None,
        Field(description="Image of the pods of runs and endpoints. Default: the operator's trainer image."),
    ] = None
    engine: Annotated[
        ImageName | None,
        Field(
            description="Image of the engine VLLM, for example of vllm/vllm-openai by digest. Required for"
            " engine: VLLM; no effect otherwise."
        ),
    ] = None


class ComputeProfileSpec(Model):
    """Desired state of a ComputeProfile."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.nodeSelector.all(key,"
            " key.matches(r'^([-.a-z0-9]+/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$'))",
            "a key of nodeSelector must be a label name, for example nvidia.com/gpu.product:"
            " see kubectl get nodes --show-labels",
            "nodeSelector",
        ),
        CELRule(
            "!has(self.device) || self.devices.resource != 'cpu'",
            "device describes an accelerator, but devices.resource is cpu: remove device, or name the"
            " accelerator's resource",
            "device",
        ),
    )

    devices: Devices = Devices()
    device: Annotated[
        DeviceFacts | None,
        Field(
            description="Properties of one device, from which preflight predicts whether a run fits and how"
            " long it takes. Default: those of the product in nodeSelector, if it is known."
        ),
    ] = None
    resources: StageResources = StageResources()
    node_selector: Annotated[
        dict[str, LabelValue], Field(max_length=32, description="Node labels that pods with devices require.")
    ] = Field(default={})
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=32, description="Tolerations of pods with devices.")
    ] = ()
    runtime_class_name: Annotated[
        Name | None, Field(description="RuntimeClass of pods with devices. Default: none.")
    ] = None
    queues: Annotated[
        PerWorkload | None,
        Field(
            description="LocalQueue of Kueue per stage, in the namespace of the object. Default: no queue."
        ),
    ] = None
    queueing: Annotated[
        Queueing | None,
        Field(
            description="Priorities in Kueue, and the queues and priorities that objects may choose. Default:"
            " no priorities and no choice."
        ),
    ] = None
    priority_classes: Annotated[
        PerWorkload | None, Field(description="PriorityClass per stage. Default: none.")
    ] = None
    images: Images = Images()
    trainer_contract: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Version of the contract between operator and trainer that images.trainer reads. No"
            " effect without images.trainer.",
        ),
    ] = 1
    engine: Annotated[
        EngineName,
        Field(
            description="Engine of endpoints and of the answers of evaluations. Transformers: part of the"
            " trainer image, for CPUs and small models. VLLM: vLLM in images.engine, for accelerators and"
            " many requests."
        ),
    ] = BUILT_IN
    allowed_engine_arguments: Annotated[
        tuple[EngineArgumentName, ...],
        Field(
            max_length=64,
            description="Names of vLLM's arguments that endpoints may set by serving.extraEngineArguments,"
            " for example --kv-cache-dtype. Arguments that the operator sets itself cannot be allowed."
            " Empty: none.",
        ),
    ] = ()
    store: Annotated[
        StoreReference | None,
        Field(
            description="Default store of runs with this profile, and of Datasets if it is the default"
            " profile."
        ),
    ] = None
    model_cache: Annotated[
        ModelCache | None,
        Field(
            description="Cache of base models and fully fine-tuned models, which the pods of endpoints then"
            " read in place. Default: each pod copies them from the store."
        ),
    ] = None
    single_node: Annotated[
        bool,
        Field(
            description="Whether all pods run on one node, so that a ReadWriteOnce claim can be the store."
        ),
    ] = False
    shared_memory: Annotated[
        Quantity | None,
        Field(
            description="Size of /dev/shm in train pods. Default: 1Gi per accelerator in pods with several,"
            " else that of the container runtime."
        ),
    ] = None
    price_per_device_hour: Annotated[
        float | None,
        Field(ge=0, description="Price per device per hour, for status.cost of runs. Default: no price."),
    ] = None
    currency: Annotated[
        str | None,
        Field(
            min_length=3,
            max_length=3,
            pattern=CURRENCY,
            json_schema_extra=pattern_advice(
                CURRENCY, "write the three capitals of ISO 4217, for example EUR"
            ),
            description="Currency of pricePerDeviceHour as in ISO 4217, such as EUR.",
        ),
    ] = None
    allowed_namespaces: Annotated[
        tuple[Name, ...],
        Field(max_length=256, description="Namespaces that may use the profile. Empty: all namespaces."),
    ] = ()
    allow_custom_code: Annotated[
        bool | None,
        Field(
            description="Whether runs may use metrics of their own (evaluation.customMetrics): Python"
            " functions that run in a pod without network, token and credentials. Default: false."
        ),
    ] = None
    allow_remote_code: Annotated[
        bool | None, Reserved(), Field(description="Whether pods may run code that is shipped with a model.")
    ] = None
    max_run_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=31536000,
            description="Max seconds that the train stage of one run uses devices, over all its attempts;"
            " time in a queue or suspended does not count. At the limit, the run saves its state and stops."
            " compute.maxRunSeconds of a run can set a lower limit. Default: no limit.",
        ),
    ] = None
    checkpoint_history_limit: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Number of most recent Checkpoints to keep per model line, of finished runs with"
            " this profile. Older ones are deleted, with their stored weights if their deletionPolicy is"
            " Delete. A Checkpoint stays if it was ever promoted, is in use or pinned, is the evaluated one"
            " of its run or else its last, is the parent of another Checkpoint, or was edited by anyone"
            " except the operator. Default: all are kept.",
        ),
    ] = None
    max_concurrent_rollouts: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Max number of endpoints with this profile, in all namespaces, that start a new"
            " revision next to a serving one at the same time. The remaining endpoints wait. Default: one"
            " per namespace.",
        ),
    ] = None


class ComputeProfileStatus(Status):
    """Observed state of a profile."""

    conditions: Conditions = ()


class ComputeProfile(Resource):
    """Devices, resources, placement, images and store that the platform team offers to runs and
    endpoints."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("ComputeProfile")

    kind: str = "ComputeProfile"
    spec: ComputeProfileSpec = ComputeProfileSpec()
    status: ComputeProfileStatus = ComputeProfileStatus()

    @property
    def is_default(self) -> bool:
        return is_marked_default(self.metadata.annotations, self.metadata.labels)


def is_marked_default(annotations: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether these annotations or labels of a ComputeProfile make it the default one."""
    return any(mark.get(DEFAULT_PROFILE_LABEL) == "true" for mark in (annotations, labels))
