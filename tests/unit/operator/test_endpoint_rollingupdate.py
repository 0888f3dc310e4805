# SPDX-License-Identifier: Apache-2.0
"""Rollouts that replace replica by replica, within the limits of `rollingUpdate`."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.api.labels import REVISION
from finetune_operator.api.rollout_strategy import RollingUpdate
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.rollout.strategies import RollingLimits
from tests.unit.operator.endpoints import (
    EndpointCluster,
    checkpoint,
    rolling,
    serving,
    serving_pod,
    states,
    unscheduled_pod,
)

SURGE: Manifest = {"rollingUpdate": {"maxSurge": 1}}


def started(replicas: int = 3, **strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision has started; the old revision and the new one."""
    return rolling(strategy={**SURGE, **strategy}, replicas=replicas)


def begun() -> tuple[EndpointCluster, str, str]:
    """An endpoint with two old replicas and one new one that are ready."""
    cluster, old, new = started()
    make_ready(cluster)
    cluster.make_ready(old)
    return cluster, old, new


def replicas(cluster: EndpointCluster) -> dict[str, int]:
    return {name: each["spec"]["replicas"] for name, each in cluster.deployments.items()}


def weights(cluster: EndpointCluster) -> dict[str, int]:
    return {each.name: each.weight for each in cluster.endpoint.status.revisions if each.weight}


def make_ready(cluster: EndpointCluster) -> None:
    """Make the pods of each revision ready."""
    for name in cluster.deployments:
        cluster.make_ready(name)
    cluster.settle()


def test_each_ready_replica_replaces_an_old_one_and_gets_its_share_of_the_requests() -> None:
    cluster, old, new = started()
    assert (replicas(cluster), weights(cluster)) == ({old: 3, new: 1}, {old: 100})
    cluster.make_ready(new)
    cluster.settle()
    assert (replicas(cluster), weights(cluster)) == ({old: 2, new: 2}, {old: 75, new: 25})
    assert states(cluster) == {new: "RollingOut", old: "Live"}
    assert "finetune.dev/revision" not in cluster.services["desk"]["spec"]["selector"]
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert (reason, message) == ("RollingOut", f"1 of 3 replicas of revision {new} are ready")
    assert cluster.endpoint.status.revision == old
    make_ready(cluster)
    assert (replicas(cluster), weights(cluster)) == ({old: 1, new: 3}, {old: 50, new: 50})
    make_ready(cluster)
    assert (replicas(cluster), weights(cluster)) == ({new: 3}, {new: 100})
    assert cluster.points_at == new
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert cluster.endpoint.status.models[0].checkpoint == "second"


def test_without_a_spare_device_a_new_replica_starts_when_an_old_pod_has_ended() -> None:
    cluster, old = serving(strategy={"rollingUpdate": {"maxUnavailable": 1}}, replicas=2)
    cluster.put(serving_pod(old, "staying"), serving_pod(old, "ending"))
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    assert replicas(cluster) == {old: 1, new: 0}
    ending = cluster.pods["ending"]["metadata"] | {"deletionTimestamp": "2030-01-02T03:04:05Z"}
    cluster.put({**cluster.pods["ending"], "metadata": ending})
    cluster.settle()
    assert replicas(cluster) == {old: 1, new: 0}, "a terminating pod still has its devices"
    del cluster.pods["ending"]
    cluster.settle()
    assert replicas(cluster) == {old: 1, new: 1}


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 4), surge=st.integers(0, 2), unavailable=st.integers(0, 2), random=st.randoms())
def test_no_order_of_events_exceeds_the_limits(
    total: int, surge: int, unavailable: int, random: Random
) -> None:
    unavailable = unavailable if surge else max(unavailable, 1)
    limits = {"maxSurge": surge, "maxUnavailable": unavailable}
    cluster, old = serving(strategy={"rollingUpdate": limits}, replicas=total)
    for number in range(total):
        cluster.put(serving_pod(old, f"old-{number}", ready=True))
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    for number in range(400):
        synchronize(cluster, (old, new), number)
        pods = list(cluster.pods.values())
        ready = [each for each in pods if each["status"]["ready"] and not is_terminating(each)]
        assert len(pods) <= total + surge
        assert len(ready) >= total - unavailable
        changing = [each for each in pods if is_terminating(each) or not each["status"]["ready"]]
        if not changing and states(cluster)[new] == "Live" and old not in cluster.deployments:
            break
        if changing:
            pod = random.choice(changing)
            if is_terminating(pod):
                del cluster.pods[pod["metadata"]["name"]]
            else:
                cluster.put({**pod, "status": {"ready": True}})
    assert (states(cluster)[new], cluster.points_at) == ("Live", new)


def is_terminating(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def synchronize(cluster: EndpointCluster, revisions: tuple[str, ...], number: int) -> None:
    """Create and end pods as the controllers do, and carry out a pass."""
    for name in revisions:
        own = [each for each in cluster.pods.values() if each["metadata"]["labels"][REVISION] == name]
        own = [each for each in own if not is_terminating(each)]
        desired = replicas(cluster).get(name, 0)
        for extra in sorted(own, key=lambda each: each["status"]["ready"])[: max(len(own) - desired, 0)]:
            extra["metadata"]["deletionTimestamp"] = "2030-01-02T03:04:05Z"
            cluster.put(extra)
        for index in range(desired - len(own)):
            cluster.put(serving_pod(name, f"{name}-{number}-{index}", ready=False))
        if name in cluster.deployments:
            ready = sum(each["status"]["ready"] for each in own if not is_terminating(each))
            status = {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": ready}
            cluster.deployments[name] = {**cluster.deployments[name], "status": status}
    cluster.reconcile()


def test_an_abort_gives_the_old_revision_its_replicas_before_the_requests() -> None:
    cluster, old, new = begun()
    cluster.edit(strategy={**SURGE, "decision": {"revision": new, "verdict": "Abort"}})
    cluster.settle()
    assert (replicas(cluster), states(cluster)[new]) == ({old: 3, new: 1}, "RolledBack")
    assert weights(cluster) == {old: 75, new: 25}
    make_ready(cluster)
    assert (replicas(cluster), cluster.points_at) == ({old: 3}, old)


def test_a_revision_that_does_not_become_ready_gives_the_requests_back() -> None:
    cluster, old, new = begun()
    ready = cluster.deployments[new]["status"]
    cluster.miss_deadline(new)
    missed = cluster.deployments[new]["status"]
    cluster.deployments[new] = {**cluster.deployments[new], "status": {**missed, **ready}}
    cluster.settle()
    assert (replicas(cluster), states(cluster)[new]) == ({old: 3, new: 1}, "Failed")
    assert weights(cluster) == {old: 75, new: 25}
    cluster.make_ready(old)
    cluster.settle()
    assert (replicas(cluster), cluster.points_at) == ({old: 3}, old)
    assert (cluster.condition("Stalled") or ("", ""))[0] == "RolloutFailed"


def test_a_pause_replaces_no_further_replica() -> None:
    cluster, old, new = started()
    cluster.make_ready(new)
    cluster.settle()
    cluster.edit(strategy={**SURGE, "paused": True})
    make_ready(cluster)
    assert (replicas(cluster), weights(cluster)) == ({old: 1, new: 2}, {old: 75, new: 25})
    cluster.edit(strategy=SURGE)
    make_ready(cluster)
    make_ready(cluster)
    assert cluster.points_at == new


def test_without_capacity_the_replicas_that_are_ready_keep_their_share() -> None:
    cluster, old, new = started()
    cluster.make_ready(new)
    cluster.settle()
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    assert (states(cluster)[new], weights(cluster)) == ("WaitingForCapacity", {old: 75, new: 25})
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "NoCapacityForSurge"


def test_another_champion_waits_until_one_revision_has_all_requests() -> None:
    cluster, old, second = begun()
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.settle()
    assert set(cluster.deployments) == {old, second}, "a split Service would select the third one too"
    make_ready(cluster)
    assert cluster.points_at == old
    assert states(cluster)[second] == "Retired"


def test_a_rollout_whose_limits_are_removed_begins_again_with_one_switch() -> None:
    cluster, old, new = begun()
    cluster.edit(strategy={"type": "RollingUpdate"})
    cluster.settle()
    assert (replicas(cluster), weights(cluster)) == ({old: 3, new: 1}, {old: 75, new: 25})
    make_ready(cluster)
    assert (replicas(cluster), cluster.points_at) == ({old: 3, new: 3}, old)
    make_ready(cluster)
    assert (replicas(cluster), cluster.points_at) == ({new: 3}, new)


def test_a_bake_has_the_old_revision_with_all_replicas() -> None:
    cluster, old, new = started(bakeSeconds=60)
    for _ in range(3):
        make_ready(cluster)
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert replicas(cluster) == {old: 3, new: 3}


@pytest.mark.parametrize(
    ("limits", "replicas", "surge", "unavailable"),
    [
        ({"maxSurge": "25%"}, 3, 1, 0),
        ({"maxUnavailable": "25%"}, 8, 0, 2),
        ({"maxUnavailable": "25%"}, 3, 0, 1),
        ({"maxSurge": 2, "maxUnavailable": "100%"}, 5, 2, 5),
    ],
)
def test_percents_are_rounded_as_in_a_deployment(
    limits: Manifest, replicas: int, surge: int, unavailable: int
) -> None:
    found = RollingLimits.of(RollingUpdate.model_validate(limits), replicas)
    assert (found.surge, found.unavailable) == (surge, unavailable)
