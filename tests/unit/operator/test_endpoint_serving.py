# SPDX-License-Identifier: Apache-2.0
"""The serving revision stays if the Service is deleted, and if no replicas can prove a new revision."""

import pytest

from tests.unit.operator.endpoints import EndpointCluster, checkpoint, profile, rolling, serving, states


def test_a_service_deleted_during_a_rollout_comes_back_for_the_revision_that_serves() -> None:
    cluster, old, new = rolling()
    cluster.services.clear()
    cluster.log.clear()
    cluster.reconcile()
    assert cluster.points_at == old
    assert set(cluster.deployments) == {old, new}
    assert cluster.log == ["create Service desk"]
    assert states(cluster) == {old: "Live", new: "RollingOut"}
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == new
    assert list(cluster.deployments) == [new]


def test_a_rollout_that_fails_without_a_service_goes_back_to_what_served() -> None:
    cluster, old, new = rolling()
    cluster.services.clear()
    cluster.miss_deadline(new)
    cluster.settle()
    assert cluster.points_at == old
    assert list(cluster.deployments) == [old]
    assert cluster.condition("Stalled") is not None


def test_a_service_deleted_by_hand_comes_back_and_no_pod_is_restarted() -> None:
    cluster, revision = serving()
    cluster.services.clear()
    cluster.log.clear()
    cluster.settle()
    assert cluster.log == ["create Service desk"]
    assert cluster.points_at == revision


def test_a_service_of_an_endpoint_that_waits_for_its_profile_comes_back_too() -> None:
    cluster, revision = serving()
    cluster.cluster.remove("ComputeProfile", "standard")
    cluster.services.clear()
    cluster.settle()
    assert cluster.points_at == revision


def test_a_selector_edited_by_hand_is_put_right() -> None:
    cluster, old, new = rolling()
    for selector in ({"app": "mine"}, {"finetune.dev/revision": "desk-none"}):
        service = cluster.services["desk"]
        cluster.services["desk"] = {**service, "spec": {**service["spec"], "selector": selector}}
        cluster.settle()
        assert cluster.points_at == old
        assert set(cluster.deployments) == {old, new}


def test_without_replicas_no_revision_goes_live_unseen_and_the_old_one_stays() -> None:
    cluster, old = serving()
    cluster.edit(replicas=0)
    cluster.settle()
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    assert cluster.points_at == old
    assert list(cluster.deployments) == [old]
    assert states(cluster) == {old: "Live"}
    reason, message = cluster.condition("Ready") or ("", "")
    assert reason == "ScaledToZero"
    assert "router = second" in message
    assert f"{old} serves until then" in message
    assert cluster.endpoint.status.models[0].checkpoint == "first"


def test_a_replica_proves_the_new_revision_and_a_broken_one_is_rolled_back() -> None:
    cluster, old = serving()
    cluster.edit(replicas=0)
    cluster.settle()
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    cluster.edit(replicas=1)
    cluster.settle()
    assert set(cluster.deployments) > {old}
    assert cluster.deployments[old]["spec"]["replicas"] == 1
    (new,) = set(cluster.deployments) - {old}
    cluster.miss_deadline(new)
    cluster.settle()
    assert cluster.points_at == old
    assert list(cluster.deployments) == [old]


def test_a_rollout_that_is_scaled_to_zero_is_postponed_and_delays_no_other() -> None:
    cluster, old, new = rolling()
    cluster.edit(replicas=0)
    cluster.settle()
    assert list(cluster.deployments) == [old]
    assert states(cluster) == {old: "Live", new: "Retired"}
    cluster.edit(replicas=2)
    cluster.settle()
    assert set(cluster.deployments) == {old, new}
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == new


def test_a_new_endpoint_without_replicas_waits_for_the_first() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), replicas=0)
    cluster.settle()
    assert cluster.deployments == {}
    assert (cluster.condition("Ready") or ("", ""))[0] == "ScaledToZero"
    cluster.edit(replicas=1)
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    assert states(cluster) == {revision: "Live"}


def test_a_live_revision_scaled_to_zero_stays_live() -> None:
    cluster, revision = serving()
    cluster.edit(replicas=0)
    cluster.make_ready(revision)
    cluster.settle()
    assert states(cluster) == {revision: "Live"}
    assert cluster.points_at == revision


@pytest.mark.parametrize(("given", "limit"), [({}, "2Ti"), ({"ephemeralStorage": "50Gi"}, "50Gi")])
def test_the_models_of_a_pod_cannot_fill_the_disk_of_a_node(given: dict[str, str], limit: str) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.put(profile(pods=[{"stages": ["serve"], "resources": {"cpu": "1", "memory": "1Gi", **given}}]))
    cluster.settle()
    (deployment,) = cluster.deployments.values()
    volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["models"] == {"name": "models", "emptyDir": {"sizeLimit": limit}}
