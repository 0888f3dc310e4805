# SPDX-License-Identifier: Apache-2.0
"""Evaluate NetworkPolicies by the documentation of Kubernetes; no network plugin enforces them in tests."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """The properties of a pod that policies select by."""

    namespace: str
    labels: dict[str, str] = field(default_factory=dict)
    address: str = "10.244.0.1"

    @property
    def namespace_labels(self) -> dict[str, str]:
        """Labels that every namespace has."""
        return {"kubernetes.io/metadata.name": self.namespace}


def admits(policies: Iterable[Object], target: Pod, source: Pod, port: int) -> bool:
    """Whether the source may open a TCP connection to this port of the target."""
    applicable = [policy for policy in policies if _protects(policy, target)]
    rules = [rule for policy in applicable for rule in policy["spec"].get("ingress", ())]
    return not applicable or any(_has_port(rule, port) and _has_peer(rule, target, source) for rule in rules)


def _protects(policy: Object, target: Pod) -> bool:
    spec = policy["spec"]
    return (
        policy["metadata"]["namespace"] == target.namespace
        and "Ingress" in spec.get("policyTypes", ["Ingress"])
        and _selects(spec["podSelector"], target.labels)
    )


def _has_port(rule: Object, port: int) -> bool:
    # A missing or empty list means all ports.
    return not rule.get("ports") or any(
        each["port"] == port and each.get("protocol", "TCP") == "TCP" for each in rule["ports"]
    )


def _has_peer(rule: Object, target: Pod, source: Pod) -> bool:
    return not rule.get("from") or any(_is_peer(peer, target, source) for peer in rule["from"])


def _is_peer(peer: Object, target: Pod, source: Pod) -> bool:
    if "ipBlock" in peer:
        return ip_address(source.address) in ip_network(peer["ipBlock"]["cidr"])
    if "namespaceSelector" in peer:
        in_namespace = _selects(peer["namespaceSelector"], source.namespace_labels)
    else:
        in_namespace = source.namespace == target.namespace
    return in_namespace and _selects(peer.get("podSelector", {}), source.labels)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions), "only the operator In is implemented"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )
