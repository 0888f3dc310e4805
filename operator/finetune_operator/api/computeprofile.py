# SPDX-License-Identifier: Apache-2.0
"""ComputeProfile: cluster-scoped; what the platform team offers to runs and endpoints."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.budget import ProfileBudget, ProfileBudgetStatus
from finetune_operator.api.devices import DeviceFacts, Devices, LabelValue, NodeLimit
from finetune_operator.api.images import Images
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
from finetune_operator.api.namespaceselector import SelectedNamespaces
from finetune_operator.api.podresources import Quantity, StageResources
from finetune_operator.api.podsecurity import PodUser
from finetune_operator.api.podtemplate import PodTemplate
from finetune_operator.api.queueing import PerWorkload, Queueing
from finetune_operator.api.serving import EngineArgumentName
from finetune_operator.api.storereference import StoreReference
from finetune_operator.api.toleration import Toleration
from finetune_trainer.contract.serving import EngineName

DEFAULT_PROFILE_LABEL: Final = "finetune.dev/is-default-profile"
"""At most one ComputeProfile may have this annotation or label with the value `true`."""

BUILT_IN: Final = "Transformers"
"""Engine that is part of the trainer image."""

NAMESPACE_PLACEHOLDER: Final = "{namespace}"
"""Text in `store.uri` that is replaced by the namespace of the object that uses the store."""

CURRENCY: Final = r"^[A-Z]{3}$"


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
        CELRule(
            f"!has(self.store) || !self.store.uri.replace('{NAMESPACE_PLACEHOLDER}', '').matches(r'[{{}}]')",
            f"of text in braces, store.uri may only have {NAMESPACE_PLACEHOLDER}, the namespace of the run",
            "store.uri",
        ),
        CELRule(
            "!has(self.budget) || !has(self.budget.costPerNamespace) || has(self.pricePerDeviceHour)",
            "budget.costPerNamespace needs pricePerDeviceHour: set it, or limit deviceHoursPerNamespace",
            "budget",
        ),
    )

    devices: Devices = Devices()
    nodes: Annotated[
        NodeLimit | None, Field(description="Limits of runs with several pods. Default: none.")
    ] = None
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
    pod_templates: Annotated[
        tuple[PodTemplate, ...],
        Field(
            max_length=8,
            description="Additions to the pods of runs and endpoints, each for some stages or for all."
            " If two set the same label, variable or field, the later one applies. Pods that exist stay"
            " unchanged: an edit applies to new Jobs and to the next revision of an endpoint.",
        ),
    ] = ()
    security_context: Annotated[
        PodUser | None,
        Field(
            description="User and groups of all pods of runs and endpoints, in place of 65532, the uid, gid"
            " and fsGroup that the operator sets. {}: the operator sets none; OpenShift requires this, and"
            " its security context constraints choose them per namespace. Pods never run as root."
        ),
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
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Version of the contract between operator and trainer that images.trainer reads. No"
            " effect without images.trainer. Default: the operator's own version.",
        ),
    ] = None
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
            " profile. {namespace} in the uri becomes the namespace of the object, so that each namespace"
            " has a folder of its own, as in s3://artifacts/{namespace}."
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
    budget: ProfileBudget = None
    allowed_namespaces: Annotated[
        tuple[Name, ...],
        Field(
            max_length=256,
            description="Namespaces that may use the profile, in addition to those of namespaceSelector."
            " Empty: all namespaces, if there is no namespaceSelector.",
        ),
    ] = ()
    namespace_selector: Annotated[
        SelectedNamespaces | None,
        Field(
            description="Labels of namespaces that may use the profile. A change of a namespace's labels"
            " takes effect within a minute. Default: allowedNamespaces decides."
        ),
    ] = None
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
            " revision next to a serving one at the same time. The remaining endpoints wait, and namespaces"
            " take turns. Default: one per namespace.",
        ),
    ] = None
    max_progress_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=10,
            le=86400,
            description="Seconds after which the starting revision of an endpoint no longer counts for"
            " maxConcurrentRollouts, if it is not ready. It continues to start until the endpoint's own"
            " progressDeadlineSeconds. Default: it counts until that deadline.",
        ),
    ] = None


class ComputeProfileStatus(Status):
    """Observed state of a profile."""

    conditions: Conditions = ()
    budget: ProfileBudgetStatus = None


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
