# SPDX-License-Identifier: Apache-2.0
"""ComputeProfile: cluster-scoped; what the platform team offers to runs and endpoints.

It has prices and a budget. Its status has what each namespace has used of the budget.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.compute import Kueue
from finetune_operator.api.labels import PeerSelector
from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    Digest,
    Model,
    Name,
    Resource,
    Status,
    name_rules,
    pattern_advice,
)
from finetune_operator.api.pod_resources import Accelerator
from finetune_operator.api.pod_template import MAX_ENTRIES, PodStage, PodTemplate, merge_entries
from finetune_operator.api.references import ProfileStoreReference
from finetune_operator.api.serving import EngineArgumentName
from finetune_trainer.contract.serving import EngineName

BudgetPeriod = Literal["Day", "Week", "Month"]
MAX_BUDGET_NAMESPACES: Final = 256


class BudgetUsage(Model):
    """What one namespace has used in the current period."""

    namespace: Annotated[Name, Field(description="Namespace of the pods.")]
    device_seconds: Annotated[
        int, Field(ge=0, description="Devices of the namespace's pods, multiplied by the seconds they ran.")
    ]
    cost: Annotated[
        float | None,
        Field(
            ge=0,
            description="Cost of these device seconds, each at the price of the time at which it was"
            " counted. Absent: the profile has no cost.pricePerDeviceHour.",
        ),
    ] = None
    counted_until: Annotated[
        datetime, Field(description="Time up to which the pods of the namespace are counted.")
    ]


class BudgetStatus(Model):
    """Use of the budget in the current period."""

    period: Annotated[BudgetPeriod, Field(description="Period that is counted.")]
    since: Annotated[
        datetime,
        Field(
            description="Start of the count: the start of the period, or the time when the budget was set."
        ),
    ]
    resets_at: Annotated[datetime, Field(description="Time at which the count begins again from 0.")]
    usage: Annotated[
        tuple[BudgetUsage, ...],
        Field(
            max_length=MAX_BUDGET_NAMESPACES,
            json_schema_extra={"x-list-map-keys": ["namespace"]},
            description="Namespaces that have used devices. Limit: the 256 namespaces with the most usage.",
        ),
    ] = ()

    def of(self, namespace: str) -> BudgetUsage | None:
        """What the namespace has used; None before its first device second."""
        return next((each for each in self.usage if each.namespace == namespace), None)


class DeviceBudget(Model):
    """Limit of device use per namespace and period."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.deviceHoursPerNamespace) != has(self.costPerNamespace)",
            "cost.budget needs exactly one of deviceHoursPerNamespace and costPerNamespace",
        ),
    )

    period: Annotated[
        BudgetPeriod,
        Field(
            description="Period after which the count begins again. In UTC; a week begins on Monday, a month"
            " on its first day."
        ),
    ]
    device_hours_per_namespace: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000000000,
            description="Device hours that each namespace may use per period: devices of its pods, multiplied"
            " by the hours that they run. Pods of runs, Evaluations and endpoints count. Default: the budget"
            " is costPerNamespace.",
        ),
    ] = None
    cost_per_namespace: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000000000,
            description="Cost that each namespace may cause per period, at cost.pricePerDeviceHour and in the"
            " profile's currency. Default: the budget is deviceHoursPerNamespace.",
        ),
    ] = None

    @property
    def limit(self) -> float:
        """Device hours, or cost."""
        return self.cost_per_namespace or self.device_hours_per_namespace or float("inf")

    def used(self, usage: BudgetUsage) -> float:
        """The usage in the unit of `limit`."""
        if self.cost_per_namespace is not None:
            return usage.cost or 0.0
        return usage.device_seconds / 3600

    def per_second(self, devices: int, price_per_device_hour: float | None) -> float:
        """Increase of `used` per second while this number of devices runs."""
        hours = devices / 3600
        return hours if self.cost_per_namespace is None else hours * (price_per_device_hour or 0.0)


ProfileBudget = Annotated[
    DeviceBudget | None,
    Field(
        description="What each namespace may use of the profile's devices per period. If it is used up,"
        " further stages with devices wait for the next period; running pods are never stopped, and endpoints"
        " serve. Each running Job of the namespace, and each that is younger than 1 h, reserves 1 h per"
        " device. A stage also waits if these reservations use up the rest of the budget. status.budget has"
        " the usage of each namespace; all users who may list profiles can read it. Default: no budget."
    ),
]
ProfileBudgetStatus = Annotated[
    BudgetStatus | None, Field(description="Use of spec.cost.budget. Absent: the profile has no budget.")
]


DEFAULT_PROFILE_LABEL: Final = "finetune.dev/is-default-profile"
"""At most one ComputeProfile may have this annotation or label with the value `true`."""

BUILT_IN: Final = "Transformers"
"""Engine that is part of the trainer image."""

CURRENCY: Final = r"^[A-Z]{3}$"
IMAGE_BY_DIGEST: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$"

ImageName = Annotated[str, Field(min_length=1, max_length=512)]


class Limits(Model):
    """Limits of what objects with the profile may use. Default: no limits."""

    nodes: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="Max number of pods that train one run together (compute.nodes). Default: no limit.",
        ),
    ] = None
    run_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=31536000,
            description="Max seconds that the train stage of one run uses devices, over all its attempts;"
            " time in a queue or suspended does not count. At the limit, the run saves its state and stops."
            " compute.maxRunSeconds of a run can set a lower limit. Default: no limit.",
        ),
    ] = None
    concurrent_rollouts: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Max number of endpoints with this profile, in all namespaces, that start a new"
            " revision next to a serving one at the same time. The remaining endpoints wait, and namespaces"
            " take turns. Default: one per namespace.",
        ),
    ] = None
    progress_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=10,
            le=86400,
            description="Seconds after which the starting revision of an endpoint no longer counts for"
            " concurrentRollouts, if it is not ready. It continues to start until the endpoint's own"
            " progressDeadlineSeconds. Default: it counts until that deadline.",
        ),
    ] = None
    checkpoints: Annotated[
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
    unpacked_bytes: Annotated[
        int | None,
        Field(
            ge=1 << 20,
            le=1 << 44,
            description="Max size in bytes of the source's files together when unpacked, and of the rows made"
            " from them: of Datasets, if this is the default profile, and of runs that name a source"
            " themselves. A larger source fails with SourceTooLarge. Default: 64 GiB each.",
        ),
    ] = None


class Images(Model):
    """Images that replace the operator's defaults."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.trainerContract) || has(self.trainer)",
            "images.trainerContract is the contract of images.trainer: set images.trainer as well, or remove"
            " images.trainerContract",
            "trainerContract",
        ),
    )

    trainer: Annotated[
        ImageName | None,
        Field(description="Image of the pods of runs and endpoints. Default: the operator's trainer image."),
    ] = None
    trainer_contract: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Version of the contract between operator and trainer that the image trainer reads."
            " The operator contacts no registry to find it. Default: the operator's own version.",
        ),
    ] = None
    engine: Annotated[
        ImageName | None,
        Field(
            description="Image of the engine VLLM, for example of vllm/vllm-openai by digest. Required for"
            " serving.engine: VLLM; no effect otherwise."
        ),
    ] = None


class ModelImage(Model):
    """OCI image with the files of one whole model."""

    model: Annotated[
        Digest,
        Field(
            description="Digest of the model in the image: a base model, as in status.baseModelDigest of its"
            " endpoints, or a fully fine-tuned Checkpoint."
        ),
    ]
    reference: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            pattern=IMAGE_BY_DIGEST,
            description="Reference of the image by digest, for example"
            " registry.example/models/llama@sha256:… with 64 hexadecimal digits. Its layers are tar archives"
            " with the files of the model at the root.",
            json_schema_extra=pattern_advice(
                IMAGE_BY_DIGEST,
                "name the image by its digest, REPOSITORY@sha256:DIGEST, so that its content cannot change",
            ),
        ),
    ]


class ModelCache(Model):
    """Where the pods of endpoints read whole models in place: a volume in each namespace, or OCI images.

    Set either claim or images.
    """

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.claim) != has(self.images)",
            "serving.modelCache needs exactly one of claim and images: a PersistentVolumeClaim in each"
            " namespace, or OCI images by digest",
        ),
    )

    claim: Annotated[
        Name | None,
        Field(
            description="Name of a PersistentVolumeClaim that exists in the namespace of each endpoint with"
            " the profile. It needs the access mode ReadWriteMany, or ReadWriteOnce if store.accessMode is"
            " that, and must not be the claim of the store. Only Jobs of the operator write to it; the pods"
            " of endpoints mount it read-only."
        ),
    ] = None
    images: Annotated[
        tuple[ModelImage, ...] | None,
        Field(
            min_length=1,
            max_length=32,
            description="OCI images with models, which the pods of endpoints mount read-only as image"
            " volumes (Kubernetes 1.35 or newer). The pods copy models without an image from the store.",
            json_schema_extra={"x-list-map-keys": ["model"]},
        ),
    ] = None


class ServingOffer(Model):
    """Engine and model cache of endpoints."""

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
    model_cache: Annotated[
        ModelCache | None,
        Field(
            description="Cache of base models and fully fine-tuned models, which the pods of endpoints then"
            " read in place. Default: each pod copies them from the store."
        ),
    ] = None


class SelectedNamespaces(PeerSelector):
    """Namespaces that have all of these labels and meet all of these conditions."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *PeerSelector.rules,
        CELRule(
            "size(self.matchLabels) > 0 || size(self.matchExpressions) > 0",
            "namespaces.selector needs matchLabels or matchExpressions, because an empty selector would allow"
            " all namespaces: name labels, or omit the selector",
            "matchLabels",
        ),
    )


class Namespaces(Model):
    """Namespaces that may use the profile: those with these names, and those that the selector selects."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "size(self.names) > 0 || has(self.selector)",
            "namespaces needs names or a selector: name who may use the profile, or omit namespaces to open"
            " the profile to all",
        ),
    )

    names: Annotated[
        tuple[Name, ...],
        Field(
            max_length=256,
            description="Namespaces that may use the profile, in addition to those of selector. All users"
            " can read them.",
        ),
    ] = ()
    selector: Annotated[
        SelectedNamespaces | None,
        Field(
            description="Labels of namespaces that may use the profile. A change of a namespace's labels"
            " takes effect within a minute. Default: names decides."
        ),
    ] = None


class ProfileCost(Model):
    """Price of devices, and the budget of each namespace."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.budget) || !has(self.budget.costPerNamespace) || has(self.pricePerDeviceHour)",
            "cost.budget.costPerNamespace needs cost.pricePerDeviceHour: set it, or limit"
            " deviceHoursPerNamespace",
            "budget",
        ),
    )

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
            description="Currency of pricePerDeviceHour as in ISO 4217, such as EUR. Default: none.",
        ),
    ] = None
    budget: ProfileBudget = None


class Allow(Model):
    """What the profile allows beyond the defaults."""

    custom_code: Annotated[
        bool,
        Field(
            description="Whether runs may use metrics of their own (evaluation.customMetrics): Python"
            " functions that run in a pod without network, token and credentials."
        ),
    ] = False


class ComputeProfileSpec(Model):
    """Desired state of a ComputeProfile."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.pods.all(entry, !(self.accelerator.resource in entry.extendedResources))",
            "extendedResources of an entry of pods has the resource of accelerator.resource, which objects"
            " request by compute.devices: remove it from extendedResources",
            "pods",
        ),
    )

    accelerator: Accelerator = Accelerator()
    limits: Limits = Limits()
    pods: Annotated[
        tuple[PodTemplate, ...],
        Field(
            max_length=MAX_ENTRIES,
            description="Sizes and placement of the pods of runs and endpoints, each entry for some stages or"
            " for all. If two entries set the same label, variable or field for a pod, the later one applies;"
            " tolerations and other lists are collected. Jobs that exist stay unchanged. Of what they say for"
            " serve, only an edit of resources, nodeSelector, tolerations, runtimeClassName and"
            " resourceClaims starts a new revision of endpoints.",
        ),
    ] = ()
    images: Images = Images()
    serving: ServingOffer = ServingOffer()
    store: Annotated[
        ProfileStoreReference | None,
        Field(
            description="Default store of runs with this profile, and of Datasets if it is the default"
            " profile. {namespace} in the uri becomes the namespace of the object, so that each namespace"
            " has a folder of its own, as in s3://artifacts/{namespace}."
        ),
    ] = None
    kueue: Kueue = Kueue()
    namespaces: Annotated[
        Namespaces | None,
        Field(description="Namespaces that may use the profile. Default: all namespaces."),
    ] = None
    cost: ProfileCost = ProfileCost()
    allow: Allow = Allow()

    def pods_of(self, names: Collection[PodStage]) -> PodTemplate:
        """What holds for pods with these names, as one entry."""
        return merge_entries(self.pods, names)


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
