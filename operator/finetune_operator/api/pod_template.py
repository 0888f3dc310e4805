# SPDX-License-Identifier: Apache-2.0
"""Size and placement of the pods of runs and endpoints: the entries of `pods` of a ComputeProfile.

- An entry is a typed part of v1.PodTemplateSpec: what could weaken the pods' security, or change what the
  operator relies on, has no field.
- Affinity has the form of v1.Affinity, without `matchFields` and without selectors of other pods by
  expressions. Its schema is closed, so that the API server refuses a mistake in the profile and not in each
  Job.
"""

from collections.abc import Collection, Iterable
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.availability import TopologySpread
from finetune_operator.api.labels import LABEL_KEY, LabelSelector, LabelValue
from finetune_operator.api.meta import (
    GROUP,
    CELRule,
    Model,
    Name,
    SecretReference,
    is_none_of,
    is_one_of,
    pattern_advice,
)
from finetune_operator.api.pod_resources import PodResources, Quantity
from finetune_trainer.contract.vocabulary import join_names

LabelKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=LABEL_KEY,
        json_schema_extra=pattern_advice(
            LABEL_KEY, "a label name is needed, for example topology.kubernetes.io/zone"
        ),
    ),
]
Weight = Annotated[int, Field(ge=1, le=100, description="Weight of the preference.")]


class NodeSelectorRequirement(Model):
    """Condition on one label of a node."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.operator in ['In', 'NotIn'] ? size(self.values) > 0 : true",
            "operators In and NotIn need values",
            "values",
        ),
        CELRule(
            "self.operator in ['Exists', 'DoesNotExist'] ? size(self.values) == 0 : true",
            "operators Exists and DoesNotExist must not have values: remove values",
            "values",
        ),
        CELRule(
            "self.operator in ['Gt', 'Lt'] ? size(self.values) == 1 && self.values[0].matches('^-?[0-9]+$')"
            " : true",
            "operators Gt and Lt need one value, an integer",
            "values",
        ),
    )

    key: Annotated[LabelKey, Field(description="Label of the node.")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"],
        Field(description="Relation of the label's value to `values`."),
    ]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=63)], ...],
        Field(
            max_length=32, description="Values of the operator: several for In and NotIn, one for Gt and Lt."
        ),
    ] = ()


class NodeSelectorTerm(Model):
    """Nodes that meet all of these conditions."""

    match_expressions: Annotated[
        tuple[NodeSelectorRequirement, ...],
        Field(min_length=1, max_length=16, description="Conditions on labels, all of which must hold."),
    ]


class NodeSelectorTerms(Model):
    """Nodes that match one of the terms."""

    node_selector_terms: Annotated[
        tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=8, description="Alternative terms.")
    ]


class PreferredNodes(Model):
    """Nodes that the scheduler prefers, with a weight."""

    weight: Weight
    preference: NodeSelectorTerm


class NodeAffinity(Model):
    """Nodes that pods need or prefer."""

    required_during_scheduling_ignored_during_execution: Annotated[
        NodeSelectorTerms | None, Field(description="Nodes that the pods need.")
    ] = None
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNodes, ...], Field(max_length=8, description="Nodes that the pods prefer.")
    ] = ()


class PodAffinityTerm(Model):
    """Pods to be near to or away from, and what is near."""

    topology_key: Annotated[
        LabelKey, Field(description="Node label. Nodes with the same value are near each other.")
    ]
    label_selector: Annotated[
        LabelSelector | None,
        Field(
            description="Labels of the pods. Default: the pods of the same stage of the same run, or of the"
            " same revision of the endpoint."
        ),
    ] = None
    namespace_selector: Annotated[
        LabelSelector | None, Field(description="Namespaces of the pods. Default: the own namespace.")
    ] = None


class PreferredPods(Model):
    """Pods that the scheduler prefers to be near to or away from, with a weight."""

    weight: Weight
    pod_affinity_term: PodAffinityTerm


class PodAffinity(Model):
    """Pods that must be or should be near, or away in podAntiAffinity."""

    required_during_scheduling_ignored_during_execution: Annotated[
        tuple[PodAffinityTerm, ...], Field(max_length=8, description="Terms that must hold.")
    ] = ()
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredPods, ...], Field(max_length=8, description="Terms that should hold.")
    ] = ()


class Affinity(Model):
    """Affinity of pods to nodes and to other pods."""

    node_affinity: Annotated[NodeAffinity | None, Field(description="Nodes.")] = None
    pod_affinity: Annotated[PodAffinity | None, Field(description="Pods to be near to.")] = None
    pod_anti_affinity: Annotated[PodAffinity | None, Field(description="Pods to keep away from.")] = None


PodStage = Literal["cpu", "prepare", "preflight", "merge", "train", "evaluate", "serve"]
"""Names of pods in an entry. `cpu` are all pods without devices; the other names are those of one stage, and
`serve` that of the pods of endpoints."""
DEVICE_STAGES: Final[tuple[PodStage, ...]] = ("train", "evaluate", "serve")
"""Stages whose pods have devices."""
SIZED_STAGES: Final[tuple[PodStage, ...]] = ("prepare", "preflight", "merge", *DEVICE_STAGES)
"""Stages that an entry can give a size."""
MAX_ENTRIES: Final = 16

RESERVED_VARIABLES: Final = (
    "HOME",
    "USER",
    "PYTHONPATH",
    "LD_PRELOAD",
    "HF_HUB_OFFLINE",
    "DO_NOT_TRACK",
    "VLLM_NO_USAGE_STATS",
    "JOB_COMPLETION_INDEX",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Environment variables that the operator, Kubernetes or the trainer sets, apart from FINETUNE_*."""
RESERVED_PREFIXES: Final = (f"{GROUP}/", "batch.kubernetes.io/")
"""Begin of the names of labels and annotations by which the operator and Kubernetes identify pods."""
RESERVED_LABELS: Final = (
    "app.kubernetes.io/managed-by",
    "controller-uid",
    "job-name",
    "pod-template-hash",
    "kueue.x-k8s.io/queue-name",
    "kueue.x-k8s.io/priority-class",
)
SECURITY_ANNOTATIONS: Final = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
)
"""Begin of the names of annotations that replace the security settings of a pod."""
RESOURCE: Final = r"^[a-z0-9][-.a-z0-9]*/[A-Za-z0-9][-_.A-Za-z0-9]*$"
VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _begins_with_none_of(prefixes: tuple[str, ...]) -> str:
    """CEL expression: the variable `key` begins with none of these texts."""
    return "!(" + " || ".join(f"key.startsWith('{prefix}')" for prefix in prefixes) + ")"


Id = Annotated[int, Field(ge=1, le=2147483647)]
"""A uid or gid other than root's."""


class PodUser(Model):
    """User and groups of pods, as fields of v1.PodSecurityContext. A field that is absent is not set."""

    run_as_user: Annotated[Id | None, Field(description="uid of the processes.")] = None
    run_as_group: Annotated[Id | None, Field(description="Primary gid of the processes.")] = None
    fs_group: Annotated[Id | None, Field(description="gid that owns the files of volumes.")] = None
    supplemental_groups: Annotated[
        tuple[Id, ...],
        Field(max_length=16, description="Further gids of the processes, such as that of an NFS export."),
    ] = ()


class Toleration(Model):
    """Toleration of a taint of nodes, in the form of v1.Toleration."""

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


class EnvironmentVariable(Model):
    """Environment variable with a value, as in v1.EnvVar."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"!self.name.startsWith('FINETUNE_') && {is_none_of('self.name', RESERVED_VARIABLES)}",
            f"FINETUNE_* and {', '.join(RESERVED_VARIABLES)} are set by the operator: remove the variable",
            "name",
        ),
    )

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            pattern=VARIABLE,
            json_schema_extra=pattern_advice(
                VARIABLE, "a variable may only have letters, digits and '_', for example NCCL_IB_HCA"
            ),
            description="Name of the variable.",
        ),
    ]
    value: Annotated[str, Field(max_length=2048, description="Value of the variable.")] = ""


class PodResourceClaim(Model):
    """Claim of dynamic resource allocation, as in v1.PodResourceClaim, for the main container."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
            "a claim needs either resourceClaimTemplateName, for a claim per pod, or resourceClaimName",
        ),
    )

    name: Annotated[Name, Field(description="Name of the claim in the pod.")]
    resource_claim_template_name: Annotated[
        Name | None,
        Field(description="ResourceClaimTemplate in the namespace of the pod: each pod gets its own claim."),
    ] = None
    resource_claim_name: Annotated[
        Name | None, Field(description="ResourceClaim in the namespace of the pod, which all pods share.")
    ] = None
    request: Annotated[
        Name | None, Field(description="Request of the claim. Default: all of its requests.")
    ] = None


class PodTopologySpread(TopologySpread):
    """Spread of pods over nodes, zones or other groups of nodes, as in v1.TopologySpreadConstraint."""

    label_selector: Annotated[
        LabelSelector | None,
        Field(
            description="Labels of the pods to spread. Default: the pods of the same stage of the same run,"
            " or of the same revision of the endpoint."
        ),
    ] = None


class PodTemplate(Model):
    """Size and placement of the pods of some stages, as fields of v1.PodTemplateSpec and v1.Container."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"self.labels.all(key, key.matches(r'{LABEL_KEY}'))",
            "a key of labels must be a label name, for example example.com/team",
            "labels",
        ),
        CELRule(
            f"self.labels.all(key, {_begins_with_none_of(RESERVED_PREFIXES)}"
            f" && {is_none_of('key', RESERVED_LABELS)})",
            f"labels {', '.join(f'{prefix}*' for prefix in RESERVED_PREFIXES)} and"
            f" {', '.join(RESERVED_LABELS)} are set by the operator or Kubernetes: remove them; for Kueue set"
            " kueue.queues",
            "labels",
        ),
        CELRule(
            f"self.annotations.all(key, key.matches(r'{LABEL_KEY}'))",
            "a key of annotations must be a name such as k8s.v1.cni.cncf.io/networks",
            "annotations",
        ),
        CELRule(
            f"self.annotations.all(key, {_begins_with_none_of((*RESERVED_PREFIXES, *SECURITY_ANNOTATIONS))})",
            "annotations of finetune.dev, batch.kubernetes.io, seccomp and AppArmor cannot be set here:"
            " remove them",
            "annotations",
        ),
        CELRule(
            f"self.nodeSelector.all(key, key.matches(r'{LABEL_KEY}'))",
            "a key of nodeSelector must be a label name, for example kubernetes.io/arch:"
            " see kubectl get nodes --show-labels",
            "nodeSelector",
        ),
        CELRule(
            f"self.extendedResources.all(key, key.matches(r'{RESOURCE}') && !key.contains('kubernetes.io/'))",
            "a key of extendedResources must be an extended resource with its domain, for example rdma/hca",
            "extendedResources",
        ),
        CELRule(
            "!has(self.resources) || (size(self.stages) > 0 && !('cpu' in self.stages))",
            f"resources are the size of a stage: name in stages which of {join_names(SIZED_STAGES)} it is "
            "for;"
            " cpu and an entry without stages are pods of different sizes",
            "resources",
        ),
        CELRule(
            "!has(self.sharedMemory) || size(self.stages) == 0"
            f" || self.stages.exists(stage, {is_one_of('stage', DEVICE_STAGES)})",
            f"sharedMemory is for pods with devices: name {join_names(DEVICE_STAGES, 'or')} in stages, or "
            "remove"
            " sharedMemory",
            "sharedMemory",
        ),
    )

    stages: Annotated[
        tuple[PodStage, ...],
        Field(
            max_length=7,
            description="Stages whose pods the entry is for. cpu: all pods without devices, among them those"
            " of prepare, preflight and merge. serve: the pods of endpoints. Empty: all pods.",
        ),
    ] = ()
    labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=16, description='Labels, such as sidecar.istio.io/inject: "false".'),
    ] = Field(default={})
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=2048)]],
        Field(max_length=16, description="Annotations, such as k8s.v1.cni.cncf.io/networks."),
    ] = Field(default={})
    env: Annotated[
        tuple[EnvironmentVariable, ...],
        Field(
            max_length=32,
            json_schema_extra={"x-list-map-keys": ["name"]},
            description="Environment variables of all containers, such as NCCL_IB_HCA. They are readable by"
            " anyone who can read pods, so they must not be secret.",
        ),
    ] = ()
    node_selector: Annotated[
        dict[str, LabelValue],
        Field(
            max_length=16,
            description="Node labels that the pods require.",
        ),
    ] = Field(default={})
    tolerations: Annotated[
        tuple[Toleration, ...],
        Field(
            max_length=16,
            description="Tolerations of taints of nodes.",
        ),
    ] = ()
    runtime_class_name: Annotated[
        Name | None,
        Field(description="RuntimeClass of the pods. Default: none."),
    ] = None
    scheduler_name: Annotated[
        str | None,
        Field(min_length=1, max_length=253, description="Scheduler. Default: that of the cluster."),
    ] = None
    priority_class_name: Annotated[
        Name | None, Field(description="PriorityClass of the pods. Default: that of the cluster.")
    ] = None
    affinity: Annotated[
        Affinity | None, Field(description="Affinity to nodes and to other pods. Default: none.")
    ] = None
    topology_spread_constraints: Annotated[
        tuple[PodTopologySpread, ...],
        Field(
            max_length=4,
            json_schema_extra={"x-list-map-keys": ["topologyKey"]},
            description="Spread constraints. availability.topologySpread of an endpoint replaces them."
            " Empty: the scheduler's defaults.",
        ),
    ] = ()
    image_pull_secrets: Annotated[
        tuple[SecretReference, ...],
        Field(
            max_length=8,
            json_schema_extra={"x-list-map-keys": ["name"]},
            description="Secrets of the pod's namespace for pulling images. Empty: those of the service"
            " account finetune-runner.",
        ),
    ] = ()
    extended_resources: Annotated[
        dict[str, Quantity],
        Field(
            max_length=8,
            description="Further extended resources of the main container, such as rdma/hca: 1. The quantity"
            " is per pod, whatever the number of its devices.",
        ),
    ] = Field(default={})
    resource_claims: Annotated[
        tuple[PodResourceClaim, ...],
        Field(
            max_length=4,
            json_schema_extra={"x-list-map-keys": ["name"]},
            description="Claims of dynamic resource allocation (DRA), in addition to devices.",
        ),
    ] = ()
    security_context: Annotated[
        PodUser | None,
        Field(
            description="User and groups of the pods, in place of 65532, the uid, gid and fsGroup that the"
            " operator sets. {}: the operator sets none; OpenShift requires this, and its security context"
            " constraints choose them per namespace. Pods never run as root."
        ),
    ] = None
    resources: Annotated[
        PodResources | None,
        Field(
            description="CPU, memory and ephemeral storage of the pods of these stages, in addition to"
            " devices. For merge, the memory must hold the base model in bfloat16, and a quarter more."
            " Default: the operator's defaults."
        ),
    ] = None
    shared_memory: Annotated[
        Quantity | None,
        Field(
            description="Size of /dev/shm in train pods, and in other pods with several accelerators."
            " Default: 1Gi per accelerator in pods with several, else that of the container runtime."
        ),
    ] = None
    cpu_limit_request_ratio: Annotated[
        float | None,
        Field(
            ge=1,
            le=1000,
            description="CPU limit of each container as a multiple of its CPU request, for namespaces whose"
            " ResourceQuota or LimitRange needs a limit. 1: the limit equals the request. Default: no limit.",
        ),
    ] = None


def merge_entries(entries: Iterable[PodTemplate], names: Collection[PodStage]) -> PodTemplate:
    """The entries for pods with any of these names as one.

    Maps are merged by key, variables and other named items by name; further items of lists are appended.
    Other values, and `securityContext` and `resources` as a whole, are those of the last entry that has them.
    """
    together = PodTemplate()
    for entry in entries:
        if not entry.stages or not set(entry.stages).isdisjoint(names):
            fields = PodTemplate.model_fields.keys() - {"stages"}
            values = {name: _join_values(getattr(together, name), getattr(entry, name)) for name in fields}
            together = together.model_copy(update=values)
    return together


def _join_values(before: Any, after: Any) -> Any:
    if isinstance(after, dict):
        return {**before, **after}
    if isinstance(after, tuple):
        return tuple({_identity(item): item for item in (*before, *after)}.values())
    return before if after is None else after


def _identity(item: Any) -> Any:
    return next((getattr(item, key) for key in ("name", "topology_key") if hasattr(item, key)), item)
