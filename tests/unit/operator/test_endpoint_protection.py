# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies and PodDisruptionBudgets of endpoints, and how their replicas are spread."""

from collections.abc import Mapping

import pytest

from finetune_operator.api.labels import REVISION
from finetune_operator.plan import Manifest
from tests.networkpolicies import Pod, admits
from tests.unit.operator.endpoints import checkpoint, rolling, serving

ALLOW_WEB = {"allowFrom": [{"namespaceSelector": {"matchLabels": {"team": "web"}}}]}
ZONES = {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}


def only(children: Mapping[str, Manifest]) -> Manifest:
    (child,) = children.values()
    return child


def test_an_endpoint_has_no_network_policy_unless_it_asks_for_one() -> None:
    cluster, _ = serving()
    assert cluster.network_policies == {}


def test_a_network_policy_admits_the_listed_peers_and_monitoring_to_the_serving_port() -> None:
    cluster, _ = serving(networkPolicy=ALLOW_WEB)
    policy = only(cluster.network_policies)
    assert policy["spec"]["podSelector"] == {"matchLabels": {"finetune.dev/run": "endpoint-uid"}}
    rule, scrapes = policy["spec"]["ingress"]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"team": "web"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]
    assert rule["ports"] == [{"port": 8000, "protocol": "TCP"}]
    assert scrapes == {"from": rule["from"][1:], "ports": [{"port": 9090, "protocol": "TCP"}]}


SHOP = Pod("web", {"app": "shop"})


@pytest.mark.parametrize(
    ("source", "port", "admitted"),
    [
        (SHOP, 8000, True),
        (SHOP, 29500, False),
        (Pod("web", {"app": "other"}), 8000, False),
        (Pod("other", {"app": "shop"}), 8000, False),
        (Pod("team", {"app": "neighbour"}), 8000, True),
        (Pod("team", {"finetune.dev/run": "endpoint-uid"}), 8000, True),
        (Pod("monitoring", {"app": "prometheus"}), 8000, True),
        (Pod("monitoring", {"app": "prometheus"}), 9090, True),
        (SHOP, 9090, False),
        (Pod("elsewhere", address="192.168.7.7"), 8000, True),
        (Pod("elsewhere", address="192.168.8.7"), 8000, False),
    ],
    ids=str,
)
def test_the_policy_means_what_was_asked_for(source: Pod, port: int, *, admitted: bool) -> None:
    peers = [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}},
            "podSelector": {"matchLabels": {"app": "shop"}},
        },
        {"podSelector": {}},
        {"ipBlock": {"cidr": "192.168.7.0/24"}},
    ]
    cluster, revision = serving(networkPolicy={"allowFrom": peers})
    pod = Pod("team", cluster.deployments[revision]["spec"]["template"]["metadata"]["labels"])
    policies = list(cluster.network_policies.values())
    assert admits(policies, pod, source, port) is admitted
    # Other pods of the namespace are not its business.
    assert admits(policies, Pod("team", {"app": "neighbour"}), source, port)


def test_a_policy_that_lists_nobody_admits_monitoring_alone() -> None:
    cluster, revision = serving(networkPolicy={})
    pod = Pod("team", cluster.deployments[revision]["spec"]["template"]["metadata"]["labels"])
    policies = list(cluster.network_policies.values())
    sources = (Pod("monitoring"), Pod("team"), SHOP)
    assert [admits(policies, pod, source, 8000) for source in sources] == [True, False, False]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"podSelector": {}}, {"podSelector": {}}),
        (
            {
                "namespaceSelector": {
                    "matchExpressions": [{"key": "team", "operator": "In", "values": ["web"]}]
                }
            },
            {
                "namespaceSelector": {
                    "matchExpressions": [{"key": "team", "operator": "In", "values": ["web"]}]
                }
            },
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "batch", "operator": "DoesNotExist"}]}},
            {"podSelector": {"matchExpressions": [{"key": "batch", "operator": "DoesNotExist"}]}},
        ),
        (
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "shop"}}},
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "shop"}}},
        ),
        ({"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}),
    ],
    ids=str,
)
def test_a_peer_is_written_as_kubernetes_has_it(given: Manifest, expected: Manifest) -> None:
    cluster, _ = serving(networkPolicy={"allowFrom": [given]})
    rule, _ = only(cluster.network_policies)["spec"]["ingress"]
    assert rule["from"][0] == expected


def test_a_network_policy_follows_its_field_and_goes_with_it() -> None:
    cluster, revision = serving(networkPolicy={})
    assert len(only(cluster.network_policies)["spec"]["ingress"][0]["from"]) == 1
    cluster.edit(networkPolicy=ALLOW_WEB)
    cluster.settle()
    assert len(only(cluster.network_policies)["spec"]["ingress"][0]["from"]) == 2
    cluster.edit(networkPolicy=None)
    cluster.settle()
    assert cluster.network_policies == {}
    assert list(cluster.deployments) == [revision]


def test_an_endpoint_that_waits_for_its_profile_is_still_protected() -> None:
    cluster, _ = serving()
    cluster.cluster.remove("ComputeProfile", "standard")
    cluster.edit(networkPolicy=ALLOW_WEB)
    cluster.settle()
    assert len(cluster.network_policies) == 1


def test_one_replica_has_no_budget_and_several_have_one_of_one() -> None:
    cluster, revision = serving()
    assert cluster.disruption_budgets == {}
    cluster.edit(replicas=3)
    cluster.settle()
    assert only(cluster.disruption_budgets)["spec"] == {
        "maxUnavailable": 1,
        "selector": {"matchLabels": {"finetune.dev/run": "endpoint-uid", "finetune.dev/revision": revision}},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }


def test_the_budget_is_what_the_spec_says_also_for_one_replica() -> None:
    cluster, _ = serving(availability={"maxUnavailable": 0})
    assert only(cluster.disruption_budgets)["spec"]["maxUnavailable"] == 0


def test_whoever_has_a_budget_of_their_own_refuses_the_operators() -> None:
    cluster, revision = serving(replicas=2)
    assert cluster.disruption_budgets
    cluster.edit(availability={"disruptionBudget": "None"})
    cluster.settle()
    assert cluster.disruption_budgets == {}
    assert list(cluster.deployments) == [revision]
    cluster.edit(availability={"disruptionBudget": "Managed"})
    cluster.settle()
    assert cluster.disruption_budgets


def test_a_budget_covers_all_revisions_that_get_requests() -> None:
    canary = {"type": "Canary", "canary": {"steps": [{"setWeight": 50}, {"pause": {"seconds": 600}}]}}
    cluster, old, new = rolling(strategy=canary, replicas=4)
    assert only(cluster.disruption_budgets)["spec"]["selector"]["matchLabels"][REVISION] == old
    for _ in range(2):
        cluster.make_ready(new)
        cluster.settle()
    spec = only(cluster.disruption_budgets)["spec"]
    assert spec["minAvailable"] == 3, "a pod that is starting does not use it up"
    assert spec["selector"]["matchExpressions"] == [
        {"key": REVISION, "operator": "In", "values": sorted((old, new))}
    ]


def test_the_budget_moves_with_the_service() -> None:
    cluster, old = serving(replicas=2)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}

    def protected() -> str:
        labels = only(cluster.disruption_budgets)["spec"]["selector"]["matchLabels"]
        return str(labels["finetune.dev/revision"])

    assert (protected(), cluster.points_at) == (old, old)
    cluster.make_ready(new)
    cluster.settle()
    assert (protected(), cluster.points_at) == (new, new)


def test_replicas_are_spread_as_the_spec_says_and_a_change_is_a_new_revision() -> None:
    cluster, plain = serving()
    assert "topologySpreadConstraints" not in cluster.deployments[plain]["spec"]["template"]["spec"]
    cluster.edit(availability={"topologySpread": [ZONES]})
    cluster.settle()
    (spread,) = set(cluster.deployments) - {plain}
    assert cluster.deployments[spread]["spec"]["template"]["spec"]["topologySpreadConstraints"] == [
        {
            "topologyKey": "topology.kubernetes.io/zone",
            "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {
                "matchLabels": {"finetune.dev/run": "endpoint-uid", "finetune.dev/revision": spread}
            },
        }
    ]


@pytest.mark.parametrize(
    "spec", [{"networkPolicy": ALLOW_WEB}, {"availability": {"maxUnavailable": 2}}], ids=str
)
def test_protection_is_no_part_of_a_revision(spec: Manifest) -> None:
    cluster, revision = serving()
    cluster.edit(**spec)
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    assert cluster.condition("Ready") is not None


KEYS = {"apiKeysSecretRef": {"name": "desk-keys"}}


def test_keys_are_mounted_into_the_engine_alone_and_asking_for_them_is_a_new_revision() -> None:
    cluster, plain = serving()
    assert "api-keys" not in str(cluster.deployments[plain])
    cluster.edit(serving=KEYS)
    cluster.settle()
    (guarded,) = set(cluster.deployments) - {plain}
    pod = cluster.deployments[guarded]["spec"]["template"]["spec"]
    assert {"name": "api-keys", "secret": {"secretName": "desk-keys"}} in pod["volumes"]
    (engine,), (fetch,) = pod["containers"], pod["initContainers"]
    path = "/var/run/finetune/api-keys"
    assert {"name": "api-keys", "mountPath": path, "readOnly": True} in engine["volumeMounts"]
    assert f'"apiKeysPath":"{path}"' in engine["env"][0]["value"]
    assert "api-keys" not in str(fetch)
