# SPDX-License-Identifier: Apache-2.0
"""A rollout without capacity waits, names what is missing, and continues when there is room."""

import pytest

from tests.unit.operator.endpoints import (
    EndpointCluster,
    broken_pod,
    checkpoint,
    crashed_pod,
    profile,
    rolling,
    serving,
    serving_pod,
    states,
    unscheduled_pod,
)
from tests.unit.operator.test_endpoint_rolloutlimit import other

QUOTA = 'pods "desk-1-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'


def refuse_by_quota(cluster: EndpointCluster, name: str) -> None:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": QUOTA,
    }
    cluster.deployments[name] = {**cluster.deployments[name], "status": {"conditions": [condition]}}


def test_a_rollout_without_a_device_waits_and_names_it_while_the_old_revision_serves() -> None:
    cluster, old, new = rolling()
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    assert states(cluster) == {new: "WaitingForCapacity", old: "Live"}
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "NoCapacityForSurge"
    assert "Insufficient nvidia.com/gpu" in message
    assert f"{old} serves until then" in message
    assert cluster.points_at == old


def test_a_quota_is_a_lack_of_capacity_and_the_name_of_the_refused_pod_is_left_out() -> None:
    cluster, old, new = rolling()
    refuse_by_quota(cluster, new)
    cluster.settle()
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "NoCapacityForSurge"
    assert "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1" in message
    assert "x7k2p" not in message
    assert cluster.points_at == old


def test_time_without_capacity_does_not_count_toward_the_deadline() -> None:
    cluster, old, new = rolling()
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    for _ in range(3):
        cluster.miss_deadline(new)
        cluster.settle()
    assert states(cluster) == {new: "WaitingForCapacity", old: "Live"}

    cluster.put(serving_pod(new))
    plan = cluster.reconcile()
    assert states(cluster)[new] == "RollingOut", "the pod has a node now"
    assert plan.requeue_after == 600
    cluster.settle()
    assert set(cluster.deployments) == {old, new}

    cluster.wait(600)
    cluster.settle()
    assert states(cluster) == {new: "Failed", old: "Live"}


def test_when_capacity_returns_the_rollout_ends_without_an_edit() -> None:
    cluster, old, new = rolling()
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    cluster.wait(86400)
    cluster.put(serving_pod(new))
    cluster.make_ready(new)
    cluster.settle()
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert cluster.points_at == new


def test_a_pod_that_cannot_start_fails_the_revision_though_another_one_has_no_node() -> None:
    cluster, old, new = rolling()
    cluster.put(unscheduled_pod(new))
    cluster.put(broken_pod(new))
    cluster.settle()
    assert states(cluster) == {new: "Failed", old: "Live"}
    assert "another digest" in (cluster.condition("Stalled") or ("", ""))[1]


def test_a_crash_counts_toward_the_deadline_though_another_pod_has_no_node() -> None:
    cluster, old, new = rolling(replicas=3)
    ready = {"type": "Ready", "status": "True"}
    once_crashed = crashed_pod(new)["status"] | {"conditions": [ready]}
    cluster.put(unscheduled_pod(new), {**serving_pod(new, "ready"), "status": once_crashed})
    cluster.settle()
    assert states(cluster)[new] == "WaitingForCapacity"
    crashes = serving_pod(new, "crashes", **crashed_pod(new)["status"])
    cluster.put(crashes)
    cluster.settle()
    assert states(cluster)[new] == "RollingOut"
    cluster.miss_deadline(new)
    cluster.settle()
    assert states(cluster) == {new: "Failed", old: "Live"}


def test_a_claim_that_cannot_be_bound_is_no_lack_of_capacity() -> None:
    cluster, old, new = rolling()
    cluster.put(unscheduled_pod(new, 'persistentvolumeclaim "artifacts" not found'))
    cluster.settle()
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "Unschedulable"
    cluster.miss_deadline(new)
    cluster.settle()
    assert states(cluster) == {new: "Failed", old: "Live"}


def test_a_rollout_that_waits_for_capacity_uses_no_slot() -> None:
    cluster, _ = serving()
    cluster.put(profile(limits={"concurrentRollouts": 1}), other(state="WaitingForCapacity"))
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    assert len(cluster.deployments) == 2


@pytest.mark.parametrize("message", ["0/1 nodes are available: 1 Insufficient cpu.", "queued"])
def test_the_first_revision_reports_what_its_pod_waits_for_and_does_not_fail(message: str) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.put(unscheduled_pod(revision, message))
    cluster.settle()
    cluster.miss_deadline(revision)
    cluster.settle()
    assert states(cluster) == {revision: "WaitingForCapacity"}
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "Unschedulable"
