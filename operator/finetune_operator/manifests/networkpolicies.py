"""NetworkPolicies of pods that the operator makes: who may open a connection to them.

Only ingress is restricted. What a pod may reach is the cluster administrator's business: sources, stores and
hubs are outside of the namespace.
"""

from collections.abc import Iterable, Mapping

from finetune_operator.api.meta import Resource
from finetune_operator.manifests.jobs import owner_reference
from finetune_operator.manifests.labels import child_labels
from finetune_operator.plan import Manifest


def build_network_policy(
    owner: Resource, name: str, pods: Mapping[str, str], ingress: Iterable[Manifest]
) -> Manifest:
    """A NetworkPolicy that refuses every connection to these pods of the owner's namespace but `ingress`.

    Args:
        owner: controller of the policy.
        name: of the policy.
        pods: labels of the pods that it protects.
        ingress: rules, each from `allow`; none: nobody may connect.
    """
    rules = list(ingress)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": child_labels(owner),
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {
            "podSelector": {"matchLabels": dict(pods)},
            "policyTypes": ["Ingress"],
            # The API server drops an empty list, which would then look like an edit.
            **({"ingress": rules} if rules else {}),
        },
    }


def allow(peers: Iterable[Manifest], *ports: int) -> Manifest:
    """An ingress rule: these `NetworkPolicyPeer`s may connect to these TCP ports; no ports: to all of them.

    Raises:
        ValueError: there is no peer; Kubernetes reads an empty list as everybody.
    """
    sources = list(peers)
    if not sources:
        raise ValueError("an ingress rule without peers admits everybody")
    rule: Manifest = {"from": sources}
    if ports:
        rule["ports"] = [{"port": port, "protocol": "TCP"} for port in ports]
    return rule


def pods_with(labels: Mapping[str, str]) -> Manifest:
    """The peer: pods of the policy's own namespace with these labels."""
    return {"podSelector": {"matchLabels": dict(labels)}}


def namespaces_with(labels: Mapping[str, str]) -> Manifest:
    """The peer: all pods of namespaces with these labels; no labels: of all namespaces."""
    return {"namespaceSelector": {"matchLabels": dict(labels)} if labels else {}}
