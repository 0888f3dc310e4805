# SPDX-License-Identifier: Apache-2.0
"""Rollouts that stop the old revision first: by strategy Recreate, or by a fallback without capacity."""

from typing import Any

import pytest

from finetune_operator.plan import Manifest
from tests.unit.operator.endpoints import (
    EndpointCluster,
    broken_pod,
    checkpoint,
    serving,
    serving_pod,
    states,
    unscheduled_pod,
)


def rolling(**spec: Any) -> tuple[EndpointCluster, str]:
    """An endpoint whose serving revision has a pod, and that has a newer champion; that revision."""
    cluster, old = serving(**spec)
    cluster.put(serving_pod(old))
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.log.clear()
    cluster.settle()
    return cluster, old


def end_pods(cluster: EndpointCluster, revision: str) -> None:
    """Remove the pods of a Deployment with 0 replicas, as its controller does."""
    assert replicas(cluster)[revision] == 0
    del cluster.pods[f"{revision}-pod"]
    cluster.deployments[revision] = {**cluster.deployments[revision], "status": {}}


def replicas(cluster: EndpointCluster) -> dict[str, int]:
    return {name: each["spec"]["replicas"] for name, each in cluster.deployments.items()}


def new_of(cluster: EndpointCluster, old: str) -> str:
    (new,) = set(cluster.deployments) - {old}
    return new


def recreating() -> tuple[EndpointCluster, str, str]:
    """An endpoint that recreates; the old revision, without pods, and the new one."""
    cluster, old = rolling(strategy={"type": "Recreate"}, replicas=2)
    end_pods(cluster, old)
    cluster.settle()
    return cluster, old, new_of(cluster, old)


def test_the_new_revision_starts_when_the_last_old_pod_has_ended() -> None:
    cluster, old = rolling(strategy={"type": "Recreate"}, replicas=2)
    assert replicas(cluster) == {old: 0}
    pod = cluster.pods[f"{old}-pod"]
    cluster.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2030-01-02T03:04:05Z"}})
    cluster.settle()
    assert replicas(cluster) == {old: 0}, "a terminating pod still has its devices"
    assert cluster.log.count(f"event RoomMade {old}") == 0
    end_pods(cluster, old)
    cluster.settle()
    new = new_of(cluster, old)
    assert replicas(cluster) == {old: 0, new: 2}
    assert states(cluster) == {new: "RollingOut", old: "Live"}
    cluster.make_ready(new)
    cluster.settle()
    assert replicas(cluster) == {new: 2}
    assert cluster.points_at == new
    assert states(cluster) == {new: "Live", old: "Retired"}


def test_a_pod_that_a_lost_node_does_not_end_delays_the_new_revision_only_until_it_is_overdue() -> None:
    cluster, old = rolling(strategy={"type": "Recreate"})
    pod = cluster.pods[f"{old}-pod"]
    cluster.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2030-01-02T03:06:05Z"}})
    seconds = cluster.reconcile().requeue_after
    assert seconds == 151
    assert replicas(cluster) == {old: 0}
    cluster.wait(seconds)
    cluster.settle()
    assert replicas(cluster) == {old: 0, new_of(cluster, old): 1}


def test_the_old_pods_are_stopped_once_and_an_event_says_why() -> None:
    cluster, old = rolling(strategy={"type": "Recreate"})
    stopped = [event.message for event in cluster.cluster.events if event.reason == "RoomMade"]
    assert len(stopped) == 1
    assert f"stopping the pods of {old}" in stopped[0]
    assert "strategy Recreate" in stopped[0]


def test_the_first_ready_replica_serves_because_nothing_else_does() -> None:
    cluster, _, new = recreating()
    status = {"observedGeneration": 1, "replicas": 2, "readyReplicas": 1, "updatedReplicas": 2}
    cluster.deployments[new] = {**cluster.deployments[new], "status": status}
    cluster.settle()
    assert cluster.points_at == new
    assert list(cluster.deployments) == [new]
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "Scaling"


@pytest.mark.parametrize("how", ["deadline", "broken"])
def test_if_the_new_revision_fails_the_old_one_starts_again(how: str) -> None:
    cluster, old, new = recreating()
    if how == "broken":
        cluster.put(broken_pod(new))
    else:
        cluster.miss_deadline(new)
    cluster.settle()
    assert replicas(cluster) == {old: 2}
    assert cluster.points_at == old
    assert states(cluster) == {new: "Failed", old: "Live"}
    assert (cluster.condition("Stalled") or ("", ""))[0] == "RolloutFailed"


def test_if_no_revision_can_be_rolled_out_any_more_the_old_one_gets_its_room_back() -> None:
    cluster, old, new = recreating()
    standard = cluster.cluster.objects["ComputeProfile", "standard"]
    cluster.cluster.remove("ComputeProfile", "standard")
    cluster.settle()
    assert replicas(cluster) == {old: 2}
    assert states(cluster) == {new: "Retired", old: "Live"}
    cluster.put(standard)
    cluster.settle()
    assert replicas(cluster) == {old: 0, new: 2}


def test_a_recreated_revision_without_capacity_fails_at_its_deadline_because_nothing_serves() -> None:
    cluster, old, new = recreating()
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    assert states(cluster)[new] == "RollingOut"
    cluster.miss_deadline(new)
    cluster.settle()
    assert replicas(cluster) == {old: 2}


def test_a_third_revision_replaces_the_second_and_the_old_one_stays_without_pods() -> None:
    cluster, old, second = recreating()
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.settle()
    third = new_of(cluster, old)
    assert third != second
    assert replicas(cluster) == {old: 0, third: 2}


FALLBACK: Manifest = {"type": "RollingUpdate", "fallback": "Recreate", "progressDeadlineSeconds": 300}


def test_a_fallback_stops_the_old_revision_only_after_the_deadline_without_capacity() -> None:
    cluster, old = rolling(strategy=FALLBACK)
    new = new_of(cluster, old)
    assert replicas(cluster) == {old: 1, new: 1}
    cluster.put(unscheduled_pod(new))
    assert cluster.reconcile().requeue_after == 300
    cluster.wait(299)
    assert cluster.reconcile().requeue_after == 1
    assert replicas(cluster) == {old: 1, new: 1}
    cluster.wait(1)
    cluster.settle()
    assert replicas(cluster) == {old: 0, new: 1}
    assert states(cluster) == {new: "RollingOut", old: "Live"}
    stopped = [event.message for event in cluster.cluster.events if event.reason == "RoomMade"]
    assert len(stopped) == 1
    assert "Insufficient nvidia.com/gpu" in stopped[0]

    end_pods(cluster, old)
    cluster.settle()
    cluster.put(serving_pod(new))
    cluster.settle()
    assert replicas(cluster) == {old: 0, new: 1}
    cluster.make_ready(new)
    cluster.settle()
    assert (replicas(cluster), cluster.points_at) == ({new: 1}, new)


def test_if_the_fallback_fails_the_old_revision_starts_again() -> None:
    cluster, old = rolling(strategy=FALLBACK)
    new = new_of(cluster, old)
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    cluster.wait(300)
    cluster.settle()
    end_pods(cluster, old)
    cluster.put(serving_pod(new))
    cluster.miss_deadline(new)
    cluster.settle()
    assert replicas(cluster) == {old: 1}
    assert states(cluster) == {new: "Failed", old: "Live"}


def test_without_a_fallback_the_old_revision_is_never_stopped() -> None:
    cluster, old = rolling()
    new = new_of(cluster, old)
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    cluster.wait(86400)
    cluster.settle()
    assert replicas(cluster) == {old: 1, new: 1}
