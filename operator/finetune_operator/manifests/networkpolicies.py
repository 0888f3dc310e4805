# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies of the operator's pods.

They restrict only ingress, except those of pods that run code of a user. Administrators restrict the egress
of other pods, because sources, stores and hubs are outside of the namespace.
"""

from collections.abc import Iterable, Mapping

from finetune_operator.api.meta import Resource
from finetune_operator.manifests.jobs import child_metadata
from finetune_operator.plan import Manifest


def build_network_policy(
    owner: Resource, name: str, pods: Mapping[str, str], ingress: Iterable[Manifest]
) -> Manifest:
    """A NetworkPolicy that refuses all connections to the pods except those in `ingress`.

    Args:
        owner: controller of the policy. The pods are in its namespace.
        name: name of the policy.
        pods: labels of the protected pods.
        ingress: rules from `allow`; empty: no connections are allowed.
    """
    rules = list(ingress)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": child_metadata(owner, name),
        "spec": {
            "podSelector": {"matchLabels": dict(pods)},
            "policyTypes": ["Ingress"],
            # The API server drops an empty list, and the difference would look like an edit.
            **({"ingress": rules} if rules else {}),
        },
    }


def build_isolation(owner: Resource, name: str, pods: Mapping[str, str]) -> Manifest:
    """A NetworkPolicy that refuses all connections to the pods and from them."""
    policy = build_network_policy(owner, name, pods, ())
    policy["spec"]["policyTypes"] = ["Ingress", "Egress"]
    return policy


def allow(peers: Iterable[Manifest], *ports: int) -> Manifest:
    """An ingress rule: these `NetworkPolicyPeer`s may connect to these TCP ports; no ports: to all ports.

    Raises:
        ValueError: `peers` is empty, which Kubernetes interprets as all peers.
    """
    sources = list(peers)
    if not sources:
        raise ValueError("an ingress rule without peers allows all connections")
    rule: Manifest = {"from": sources}
    if ports:
        rule["ports"] = [{"port": port, "protocol": "TCP"} for port in ports]
    return rule


def pods_with(labels: Mapping[str, str]) -> Manifest:
    """Peer: pods of the policy's namespace with these labels."""
    return {"podSelector": {"matchLabels": dict(labels)}}


def namespaces_with(labels: Mapping[str, str]) -> Manifest:
    """Peer: all pods of namespaces with these labels; no labels: of all namespaces."""
    return {"namespaceSelector": {"matchLabels": dict(labels)} if labels else {}}
