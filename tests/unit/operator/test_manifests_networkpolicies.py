# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies name their peers, and never allow all connections by accident."""

import pytest

from finetune_operator.manifests.network_policies import (
    allow,
    build_network_policy,
    namespaces_with,
    pods_with,
)
from tests.unit.operator.endpoints import endpoint


def test_a_policy_without_rules_refuses_every_connection() -> None:
    policy = build_network_policy(endpoint(), "desk", {"finetune.dev/run": "endpoint-uid"}, ())
    assert policy["spec"] == {
        "podSelector": {"matchLabels": {"finetune.dev/run": "endpoint-uid"}},
        "policyTypes": ["Ingress"],
    }
    (owner,) = policy["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("endpoint-uid", True)


def test_a_rule_names_peers_and_ports() -> None:
    rule = allow([pods_with({"app": "web"}), namespaces_with({"team": "a"})], 8000, 9000)
    assert rule == {
        "from": [
            {"podSelector": {"matchLabels": {"app": "web"}}},
            {"namespaceSelector": {"matchLabels": {"team": "a"}}},
        ],
        "ports": [{"port": 8000, "protocol": "TCP"}, {"port": 9000, "protocol": "TCP"}],
    }
    assert "ports" not in allow([pods_with({"app": "web"})])


def test_no_labels_of_namespaces_mean_all_of_them() -> None:
    assert namespaces_with({}) == {"namespaceSelector": {}}


def test_a_rule_without_peers_is_refused_because_kubernetes_reads_it_as_everybody() -> None:
    with pytest.raises(ValueError, match="allows all connections"):
        allow([])
