# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies of the pods of stages and endpoints.

They restrict only ingress, except those of pods that run code of a user. Administrators restrict the
egress of other pods, because sources, stores and hubs are outside of the namespace.
"""

from collections.abc import Iterable, Mapping

from finetune_operator.api.endpoint_access import NetworkPeer
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import ANALYZED, RUN, PeerSelector
from finetune_operator.api.meta import Resource
from finetune_operator.manifests.jobs import child_metadata
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import METRICS_PORT, SERVE_PORT


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


def build_endpoint_policy(endpoint: InferenceDeployment, monitoring: Mapping[str, str]) -> Manifest:
    """The NetworkPolicy of all revisions of an endpoint with `spec.networkPolicy`.

    Args:
        endpoint: owner of the pods.
        monitoring: labels of the namespaces that may always connect, because metrics of the built-in engine
            use the same port as its API.
    """
    assert endpoint.spec.network_policy is not None  # noqa: S101 - the caller checks
    peers = [_peer(peer) for peer in endpoint.spec.network_policy.allow_from]
    scrapers = namespaces_with(monitoring)
    rules = [allow([*peers, scrapers], SERVE_PORT), allow([scrapers], METRICS_PORT)]
    if endpoint.spec.strategy.analysis is not None:
        rules.append(allow([pods_with({ANALYZED: endpoint.uid})], SERVE_PORT, METRICS_PORT))
    return build_network_policy(
        endpoint,
        stage_job_name(endpoint, "ingress"),
        {RUN: endpoint.uid},
        rules,
    )


def _peer(peer: NetworkPeer) -> Manifest:
    if peer.ip_block is not None:
        return {"ipBlock": {"cidr": peer.ip_block.cidr}}
    selectors = {"namespaceSelector": peer.namespace_selector, "podSelector": peer.pod_selector}
    return {name: _selector(selector) for name, selector in selectors.items() if selector is not None}


def _selector(selector: PeerSelector) -> Manifest:
    """The selector without empty fields, which the API server omits."""
    expressions = [_without_empty(each.to_dict()) for each in selector.match_expressions]
    return _without_empty({"matchLabels": selector.match_labels, "matchExpressions": expressions})


def _without_empty(fields: Manifest) -> Manifest:
    return {name: value for name, value in fields.items() if value}
