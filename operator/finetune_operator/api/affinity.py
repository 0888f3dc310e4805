# SPDX-License-Identifier: Apache-2.0
"""Affinity of pods to nodes and to other pods, in the form of v1.Affinity.

Without `matchFields` and selectors by expressions of other pods. The schema of a pod's affinity is closed, so
that the API server refuses a mistake in the profile and not in each Job.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.endpointaccess import LABEL_KEY, LabelSelector
from finetune_operator.api.meta import CELRule, Model, pattern_advice

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
