# SPDX-License-Identifier: Apache-2.0
"""Protection of pods: NetworkPolicies, and PodDisruptionBudgets of endpoints.

The policies restrict only ingress, except those of pods that run code of a user. Administrators restrict the
egress of other pods, because sources, stores and hubs are outside of the namespace.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from finetune_operator.api.endpoint_access import NetworkPeer, PeerSelector
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.manifests.jobs import child_metadata
from finetune_operator.manifests.labels import ANALYZED, REVISION, RUN, stage_job_name
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


DEFAULT_MAX_UNAVAILABLE: Final = 1


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


def build_disruption_budget(endpoint: InferenceDeployment, revision: str) -> Manifest:
    """The PodDisruptionBudget of the serving revision.

    It does not cover other revisions: the pods of a starting revision, which are not ready, would use up the
    budget, and no node could be drained. Pods that are not ready may always be evicted, because they serve no
    requests.
    """
    selector = {"matchLabels": {RUN: endpoint.uid, REVISION: revision}}
    return _budget(endpoint, selector, {"maxUnavailable": _max_unavailable(endpoint)})


def build_shared_budget(endpoint: InferenceDeployment, weights: Mapping[str, int]) -> Manifest:
    """The PodDisruptionBudget of revisions that share the requests.

    It states the ready pods that must stay, which pods that are starting do not change.

    Args:
        endpoint: owner of the pods.
        weights: percent of the requests by revision.
    """
    revisions = {"key": REVISION, "operator": "In", "values": sorted(weights)}
    selector = {"matchLabels": {RUN: endpoint.uid}, "matchExpressions": [revisions]}
    min_available = max(endpoint.spec.replicas - _max_unavailable(endpoint), 0)
    return _budget(endpoint, selector, {"minAvailable": min_available})


def _max_unavailable(endpoint: InferenceDeployment) -> int:
    availability = endpoint.spec.availability
    given = availability.max_unavailable if availability is not None else None
    return DEFAULT_MAX_UNAVAILABLE if given is None else given


def _budget(endpoint: InferenceDeployment, selector: Manifest, limit: Manifest) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(endpoint, stage_job_name(endpoint, "budget")),
        "spec": {**limit, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }
