# SPDX-License-Identifier: Apache-2.0
"""Conditions Available and ImageCurrent of an endpoint."""

import pytest

from finetune_operator.api.meta import Condition
from tests.unit.operator.endpoints import EndpointCluster, checkpoint, profile, serving
from tests.unit.operator.test_endpoint_rollout import failed_pod


def lose_pods(cluster: EndpointCluster, revision: str) -> None:
    live = cluster.deployments[revision]
    cluster.deployments[revision] = {**live, "status": {**live["status"], "readyReplicas": 0}}


def condition(cluster: EndpointCluster, type_: str) -> Condition | None:
    return next((each for each in cluster.endpoint.status.conditions if each.type == type_), None)


def verdict(cluster: EndpointCluster, type_: str) -> tuple[str, str]:
    found = condition(cluster, type_)
    assert found is not None
    return found.status, found.reason


def test_an_endpoint_is_available_while_a_replica_of_what_serves_is_ready() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    assert verdict(cluster, "Available") == ("False", "NoReplicaReady")
    cluster.make_ready(next(iter(cluster.deployments)))
    cluster.settle()
    assert verdict(cluster, "Available") == ("True", "Available")


def test_a_live_endpoint_without_a_pod_says_so_and_why() -> None:
    cluster, revision = serving()
    cluster.put(failed_pod(revision, 12, "StoreUnavailable: input/output error"))
    lose_pods(cluster, revision)
    cluster.settle()
    assert verdict(cluster, "Available") == ("False", "NoReplicaReady")
    found = condition(cluster, "Available")
    assert found is not None
    assert "input/output error" in found.message
    assert cluster.condition("Stalled") is None


def test_a_live_endpoint_whose_pods_cannot_start_again_is_stalled_until_they_do() -> None:
    cluster, revision = serving()
    live = cluster.deployments[revision]
    cluster.put(failed_pod(revision, 10, "ArtifactCorrupt: another digest"))
    lose_pods(cluster, revision)
    cluster.settle()
    assert "another digest" in (cluster.condition("Stalled") or ("", ""))[1]
    assert list(cluster.deployments) == [revision]
    cluster.pods.clear()
    cluster.deployments[revision] = live
    cluster.settle()
    assert cluster.condition("Ready") is not None
    assert cluster.condition("Stalled") is None


def test_a_rollout_that_failed_leaves_the_endpoint_available() -> None:
    cluster, old = serving()
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.miss_deadline(new)
    cluster.settle()
    assert cluster.condition("Stalled") is not None
    assert verdict(cluster, "Available") == ("True", "Available")


def test_an_endpoint_without_replicas_is_not_available() -> None:
    cluster, revision = serving()
    cluster.edit(replicas=0)
    cluster.settle()
    cluster.make_ready(revision)
    cluster.settle()
    assert cluster.condition("Ready") is not None
    assert verdict(cluster, "Available") == ("False", "ScaledToZero")


@pytest.mark.parametrize(
    ("tag", "floor", "expected"),
    [
        ("trainer:0.1.0", "0.2.0", ("False", "BelowSecurityFloor")),
        ("trainer:v0.1.9@sha256:abc", "0.2", ("False", "BelowSecurityFloor")),
        ("trainer:0.2", "0.2.0", ("True", "NotBelowSecurityFloor")),
        ("trainer:0.10.0-cuda", "0.9.1", ("True", "NotBelowSecurityFloor")),
        ("registry.example:5000/trainer", "0.2.0", ("Unknown", "VersionUnknown")),
        ("trainer:latest", "0.2.0", ("Unknown", "VersionUnknown")),
        ("trainer@sha256:abc", "0.2.0", ("Unknown", "VersionUnknown")),
        ("trainer:1a2b3c4d", "0.2.0", ("Unknown", "VersionUnknown")),
    ],
)
def test_an_image_below_the_security_floor_is_named(tag: str, floor: str, expected: tuple[str, str]) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.configure(trainer_image=tag)
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    assert condition(cluster, "ImageCurrent") is None
    cluster.configure(trainer_image_floor=floor)
    cluster.settle()
    assert verdict(cluster, "ImageCurrent") == expected
    assert list(cluster.deployments) == [revision]


def test_a_restart_is_a_rollout_with_the_operators_image_and_only_a_new_time_is_another() -> None:
    cluster, old = serving()
    cluster.configure(trainer_image="trainer:2")
    cluster.settle()
    assert list(cluster.deployments) == [old]
    cluster.edit(restartedAt="2030-02-01T00:00:00Z")
    cluster.settle()
    assert cluster.points_at == old
    (new,) = set(cluster.deployments) - {old}
    (container,) = cluster.deployments[new]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "trainer:2"
    cluster.make_ready(new)
    cluster.settle()
    assert list(cluster.deployments) == [new]
    cluster.edit(restartedAt="2030-02-01T01:00:00+01:00")
    cluster.settle()
    assert list(cluster.deployments) == [new], "the same moment in another time zone"
    cluster.edit(restartedAt="2030-02-01T00:00:01Z")
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_a_restart_mends_a_failed_revision() -> None:
    cluster, old = serving()
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.miss_deadline(new)
    cluster.settle()
    assert list(cluster.deployments) == [old]
    cluster.edit(restartedAt="2030-02-01T00:00:00Z")
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_an_image_that_the_profile_names_is_not_replaced_by_a_restart() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), restartedAt="2030-02-01T00:00:00Z")
    cluster.put(profile(images={"trainer": "registry.example/other:2"}))
    cluster.settle()
    (deployment,) = cluster.deployments.values()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/other:2"
