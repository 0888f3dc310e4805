# SPDX-License-Identifier: Apache-2.0
"""Nodes whose devices the pods of a stage can get, and whether two stages compete for the same ones."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple, Self

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.pod_template import Affinity, PodStage, Toleration

CONDITION_TAINTS: Final = "node.kubernetes.io/"
"""Begin of the keys of taints that Kubernetes sets by the state of a node."""


class _LabelCondition(NamedTuple):
    """Condition on one label of a node, as in v1.NodeSelectorRequirement."""

    key: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodePool:
    """The nodes whose devices the pods of a stage can get.

    Attributes:
        resource: extended resource of the devices.
        terms: alternatives, each of which is a conjunction of conditions on labels.
        tolerations: tolerations of taints, except those that show the state of a node.
    """

    resource: str
    terms: tuple[tuple[_LabelCondition, ...], ...]
    tolerations: tuple[Toleration, ...]

    @classmethod
    def of(cls, profile: ComputeProfile, names: Collection[PodStage]) -> Self:
        """The nodes of pods with these names in the entries of the profile."""
        pods = profile.spec.pods_of(names)
        selected = tuple(_LabelCondition(key, "In", (value,)) for key, value in pods.node_selector.items())
        return cls(
            profile.spec.accelerator.resource,
            tuple((*selected, *term) for term in _required_terms(pods.affinity)),
            tuple(each for each in pods.tolerations if not (each.key or "").startswith(CONDITION_TAINTS)),
        )

    def may_share_nodes_with(self, other: "NodePool") -> bool:
        """Whether the devices are of the same kind, and no label keeps all nodes apart."""
        return self.resource == other.resource and any(
            _is_satisfiable((*own, *others)) for own, others in product(self.terms, other.terms)
        )

    def has_other_taints_than(self, other: "NodePool") -> bool:
        """Whether each tolerates a taint that the other does not, as pools with taints of their own do.

        This does not prove that they share no node: both can use nodes without taints.
        """
        return _tolerates_more(self.tolerations, other.tolerations) and _tolerates_more(
            other.tolerations, self.tolerations
        )


def _required_terms(affinity: Affinity | None) -> list[tuple[_LabelCondition, ...]]:
    """The required node affinity as alternatives; without one, a single alternative without conditions."""
    nodes = affinity.node_affinity if affinity is not None else None
    required = nodes.required_during_scheduling_ignored_during_execution if nodes is not None else None
    if required is None:
        return [()]
    return [
        tuple(_LabelCondition(each.key, each.operator, each.values) for each in term.match_expressions)
        for term in required.node_selector_terms
    ]


def _is_satisfiable(conditions: Iterable[_LabelCondition]) -> bool:
    """Whether a node can meet all of these conditions."""
    by_label: dict[str, list[_LabelCondition]] = defaultdict(list)
    for condition in conditions:
        by_label[condition.key].append(condition)
    return all(map(_is_possible, by_label.values()))


def _is_possible(conditions: list[_LabelCondition]) -> bool:
    """Whether one label can meet all of these conditions."""
    listed = [set(each.values) for each in conditions if each.operator == "In"]
    operators = {each.operator for each in conditions}
    if "DoesNotExist" in operators:
        return operators <= {"DoesNotExist", "NotIn"}
    if listed:
        return any(all(_meets(value, each) for each in conditions) for value in set.intersection(*listed))
    above = max((int(each.values[0]) for each in conditions if each.operator == "Gt"), default=None)
    below = min((int(each.values[0]) for each in conditions if each.operator == "Lt"), default=None)
    return above is None or below is None or above + 1 < below


def _meets(value: str, condition: _LabelCondition) -> bool:
    if condition.operator in {"Gt", "Lt"}:
        try:
            number, bound = int(value), int(condition.values[0])
        except ValueError:
            return False
        return number > bound if condition.operator == "Gt" else number < bound
    return (value in condition.values) != (condition.operator == "NotIn") or condition.operator == "Exists"


def _tolerates_more(tolerations: Iterable[Toleration], others: tuple[Toleration, ...]) -> bool:
    """Whether one of the tolerations is for a taint that none of the others is for."""
    return not all(any(_covers(other, each) for other in others) for each in tolerations)


def _covers(other: Toleration, toleration: Toleration) -> bool:
    """Whether `other` tolerates each taint that `toleration` does."""
    return (
        other.key in {None, toleration.key}
        and (
            other.operator == "Exists"
            or (other.operator, other.value) == (toleration.operator, toleration.value)
        )
        and other.effect in {None, toleration.effect}
    )
