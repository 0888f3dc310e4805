# SPDX-License-Identifier: Apache-2.0
"""A revision whose pods cannot start is created again after a correction of its ComputeProfile."""

from typing import Any

import pytest

from finetune_operator.manifests.labels import TEMPLATE_DIGEST
from tests.unit.operator.endpoints import (
    EndpointCluster,
    checkpoint,
    rolling,
    serving_pod,
    states,
    unscheduled_pod,
)

CORRECTED = [{"schedulerName": "gang", "cpuLimitRequestRatio": 2}]
"""Fields of pods that are not part of a revision's name."""
NO_NODE = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."


def correct(cluster: EndpointCluster) -> None:
    """Edit the profile, as the platform team does."""
    cluster.cluster.change("ComputeProfile", "standard", pods=CORRECTED)
    cluster.settle()


def starting() -> tuple[EndpointCluster, str]:
    """An endpoint whose first revision starts."""
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (name,) = cluster.deployments
    return cluster, name


def uid_of(cluster: EndpointCluster, name: str) -> str:
    uid: str = cluster.deployments[name]["metadata"]["uid"]
    return uid


def refuse(cluster: EndpointCluster, name: str, message: str) -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    cluster.deployments[name] = {**cluster.deployments[name], "status": {"conditions": [condition]}}


def test_a_refused_pod_is_quoted_with_what_to_change() -> None:
    cluster, name = starting()
    refuse(
        cluster,
        name,
        'pods "x7k2p" is forbidden: failed quota: q: must specify limits.cpu for: engine',
    )
    cluster.settle()
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "PodNotStarting"
    assert "the API server refuses the pod: failed quota: q: must specify limits.cpu" in message
    assert "(set pods[].cpuLimitRequestRatio of ComputeProfile standard)" in message
    assert "x7k2p" not in message

    cluster.miss_deadline(name)
    refused = cluster.deployments[name]["status"]["conditions"]
    refuse(cluster, name, 'pods "x" is forbidden: no PriorityClass with name high was found')
    cluster.deployments[name]["status"]["conditions"] += refused
    cluster.settle()
    assert "no PriorityClass with name high" in (cluster.condition("Stalled") or ("", ""))[1]


@pytest.mark.parametrize("has_fallback", [False, True])
def test_a_corrected_profile_reaches_a_revision_that_no_node_takes(has_fallback: bool) -> None:
    if has_fallback:
        cluster, old, name = rolling()
    else:
        (cluster, name), old = starting(), ""
    cluster.put(unscheduled_pod(name, NO_NODE))
    cluster.settle()
    before = uid_of(cluster, name)

    correct(cluster)

    after = uid_of(cluster, name)
    assert after != before
    template = cluster.deployments[name]["spec"]["template"]["spec"]
    assert template["schedulerName"] == "gang"
    if has_fallback:
        assert cluster.points_at == old
        assert "schedulerName" not in cluster.deployments[old]["spec"]["template"]["spec"]
    cluster.make_ready(name)
    cluster.settle()
    assert states(cluster)[name] == "Live"
    assert uid_of(cluster, name) == after


def test_a_refused_revision_follows_the_profile_too() -> None:
    cluster, name = starting()
    refuse(cluster, name, 'pods "x" is forbidden: exceeded quota: q, requested: limits.cpu=4')
    cluster.settle()
    before = uid_of(cluster, name)
    correct(cluster)
    assert uid_of(cluster, name) != before


RUNNING = {"containerStatuses": [{"name": "engine", "state": {"running": {}}}]}
CRASHING: dict[str, Any] = {
    "containerStatuses": [
        {
            "name": "engine",
            "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1}},
        }
    ]
}


@pytest.mark.parametrize("status", [RUNNING, CRASHING])
def test_a_revision_with_a_pod_that_has_started_stays(status: dict[str, Any]) -> None:
    cluster, name = starting()
    cluster.put(unscheduled_pod(name, NO_NODE), serving_pod(name, "started", **status))
    cluster.settle()
    before = uid_of(cluster, name)
    correct(cluster)
    assert uid_of(cluster, name) == before


@pytest.mark.parametrize(
    "edit",
    [
        {"cost": {"pricePerDeviceHour": 2.0}},
        {"limits": {"runSeconds": 3600}},
        {"pods": [{"stages": ["train"], "nodeSelector": {"pool": "gpu"}}]},
    ],
)
def test_an_edit_that_does_not_change_the_pods_replaces_no_revision(edit: dict[str, Any]) -> None:
    cluster, name = starting()
    cluster.put(unscheduled_pod(name, NO_NODE))
    cluster.settle()
    before = uid_of(cluster, name)
    cluster.cluster.change("ComputeProfile", "standard", **edit)
    cluster.settle()
    assert uid_of(cluster, name) == before


def test_a_revision_stays_while_the_rollout_is_paused() -> None:
    cluster, _, name = rolling()
    cluster.put(unscheduled_pod(name, NO_NODE))
    cluster.settle()
    before = uid_of(cluster, name)

    cluster.edit(strategy={"paused": True})
    correct(cluster)

    assert uid_of(cluster, name) == before
    assert (cluster.condition("Suspended") or ("", ""))[0] == "Paused"
    cluster.edit(strategy={"paused": False})
    cluster.settle()
    assert uid_of(cluster, name) != before


def test_the_live_revision_stays_although_its_new_pod_has_no_node() -> None:
    cluster, name = starting()
    cluster.make_ready(name)
    cluster.settle()
    cluster.put(unscheduled_pod(name, NO_NODE))
    before = uid_of(cluster, name)
    correct(cluster)
    assert uid_of(cluster, name) == before


def test_a_revision_of_an_earlier_release_or_without_trouble_stays() -> None:
    cluster, name = starting()
    before = uid_of(cluster, name)
    correct(cluster)
    assert uid_of(cluster, name) == before

    del cluster.deployments[name]["metadata"]["annotations"][TEMPLATE_DIGEST]
    cluster.put(unscheduled_pod(name, NO_NODE))
    cluster.cluster.change("ComputeProfile", "standard", pods=[])
    cluster.settle()
    assert uid_of(cluster, name) == before
