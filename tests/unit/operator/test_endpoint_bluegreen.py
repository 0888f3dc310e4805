# SPDX-License-Identifier: Apache-2.0
"""Previews, bakes, and the return of the requests to the revision before."""

from typing import Any

import pytest

from finetune_operator.api.labels import REVISION
from finetune_operator.plan import Manifest
from tests.unit.operator.endpoints import (
    EndpointCluster,
    checkpoint,
    crashed_pod,
    digest,
    rolling,
    serving,
    serving_pod,
    states,
)

BLUE_GREEN: Manifest = {"type": "BlueGreen"}


def ready(**strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision is ready; the old revision and the new one."""
    cluster, old, new = rolling(strategy=strategy)
    cluster.make_ready(new)
    cluster.settle()
    return cluster, old, new


def decide(cluster: EndpointCluster, revision: str, verdict: str, **strategy: Any) -> None:
    cluster.edit(strategy={**strategy, "decision": {"revision": revision, "verdict": verdict}})
    cluster.settle()


def verdict(cluster: EndpointCluster, name: str) -> str | None:
    (entry,) = [each for each in cluster.endpoint.status.revisions if each.name == name]
    return entry.verdict.result if entry.verdict is not None else None


def previewed(cluster: EndpointCluster) -> str | None:
    service = cluster.services.get("desk-preview")
    return service["spec"]["selector"]["finetune.dev/revision"] if service is not None else None


def test_a_ready_revision_is_behind_the_preview_service_and_waits_for_a_person() -> None:
    cluster, old, new = ready(**BLUE_GREEN)
    assert (cluster.points_at, previewed(cluster)) == (old, new)
    assert states(cluster) == {new: "Preview", old: "Live"}
    reason, message = cluster.condition("Suspended") or ("", "")
    assert reason == "AwaitingDecision"
    assert "http://desk-preview.team.svc/v1" in message
    assert f"set spec.strategy.decision for revision {new}" in message
    cluster.wait(30 * 86400)
    cluster.settle()
    assert cluster.points_at == old


def test_a_promotion_switches_and_removes_the_preview_service() -> None:
    cluster, old, new = ready(**BLUE_GREEN)
    decide(cluster, new, "Promote", **BLUE_GREEN)
    assert (cluster.points_at, previewed(cluster)) == (new, None)
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert verdict(cluster, new) == "Promoted"
    assert list(cluster.deployments) == [new]


def test_an_abort_in_the_preview_loses_nothing() -> None:
    cluster, old, new = ready(**BLUE_GREEN)
    decide(cluster, new, "Abort", **BLUE_GREEN)
    assert (cluster.points_at, previewed(cluster)) == (old, None)
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    assert verdict(cluster, new) == "Aborted"


def test_a_preview_can_end_by_itself() -> None:
    strategy = {**BLUE_GREEN, "blueGreen": {"autoPromotionSeconds": 60}}
    cluster, old, new = ready(**strategy)
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "Preview"
    cluster.wait(20)
    assert cluster.reconcile().requeue_after == 40
    assert cluster.points_at == old
    cluster.wait(40)
    cluster.settle()
    assert cluster.points_at == new
    assert verdict(cluster, new) == "Passed"


def test_without_seconds_a_preview_that_ends_by_itself_is_skipped() -> None:
    cluster, _, new = ready(type="BlueGreen", blueGreen={"autoPromotionSeconds": 0})
    assert (cluster.points_at, previewed(cluster)) == (new, None)


def test_another_champion_replaces_the_one_in_preview() -> None:
    cluster, old, second = ready(**BLUE_GREEN)
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.settle()
    assert previewed(cluster) is None
    (third,) = set(cluster.deployments) - {old}
    assert third != second
    cluster.make_ready(third)
    cluster.settle()
    assert previewed(cluster) == third
    assert states(cluster)[second] == "Retired"


def test_the_first_revision_of_an_endpoint_has_no_preview_and_no_bake() -> None:
    cluster, revision = serving(strategy={**BLUE_GREEN, "bakeSeconds": 60})
    assert states(cluster) == {revision: "Live"}
    assert cluster.condition("Ready") is not None


def test_a_bake_keeps_the_old_revision_and_ends_by_itself() -> None:
    cluster, old, new = ready(bakeSeconds=300)
    assert cluster.points_at == new
    assert set(cluster.deployments) == {old, new}
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert (cluster.condition("Ready") or ("", ""))[0] == "Baking"
    assert cluster.endpoint.status.models[0].checkpoint == "second"
    cluster.wait(100)
    assert cluster.reconcile().requeue_after == 200
    assert set(cluster.deployments) == {old, new}
    cluster.wait(200)
    cluster.settle()
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert verdict(cluster, new) == "Passed"
    assert list(cluster.deployments) == [new]


def test_a_crash_in_the_bake_returns_the_requests_at_once() -> None:
    cluster, old, new = ready(bakeSeconds=300)
    cluster.put(crashed_pod(new, "2030-01-02T03:09:00Z"))
    cluster.log.clear()
    cluster.settle()
    assert cluster.points_at == old
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    assert list(cluster.deployments) == [old]
    assert cluster.log.index("apply Service desk") < cluster.log.index(f"delete {new}")
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "RolledBack"
    assert "OOMKilled" in message
    assert cluster.endpoint.status.models[0].checkpoint == "first"
    assert verdict(cluster, new) == "Failed"
    cluster.wait(86400)
    cluster.settle()
    assert list(cluster.deployments) == [old], "it is not tried again by itself"


def test_a_crash_before_the_bake_does_not_count() -> None:
    cluster, _, new = ready(bakeSeconds=300)
    cluster.put(crashed_pod(new, "2030-01-02T03:04:00Z"))
    cluster.settle()
    assert states(cluster)[new] == "Baking"


def unready_pod(revision: str, since: str) -> Manifest:
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": since}
    return serving_pod(revision, conditions=[ready])


def test_a_pod_that_stays_unready_in_the_bake_returns_the_requests() -> None:
    cluster, old, new = ready(bakeSeconds=3600, progressDeadlineSeconds=120)
    live = cluster.deployments[new]
    cluster.deployments[new] = {**live, "status": {**live["status"], "readyReplicas": 0}}
    cluster.put(unready_pod(new, "2030-01-02T03:04:05Z"))
    assert cluster.reconcile().requeue_after == 120
    assert cluster.points_at == new, "a drained pod is replaced in this time"
    cluster.wait(120)
    cluster.settle()
    assert cluster.points_at == old
    assert "was not ready for 120 s" in (cluster.condition("Stalled") or ("", ""))[1]


def test_people_end_a_bake_in_both_directions() -> None:
    cluster, old, new = ready(bakeSeconds=300)
    decide(cluster, new, "Abort", bakeSeconds=300)
    assert (cluster.points_at, list(cluster.deployments)) == (old, [old])
    cluster, old, new = ready(bakeSeconds=300)
    decide(cluster, new, "Promote", bakeSeconds=300)
    assert (cluster.points_at, list(cluster.deployments)) == (new, [new])
    assert verdict(cluster, new) == "Promoted"


def test_the_promotion_that_ended_the_preview_does_not_end_the_bake() -> None:
    strategy = {**BLUE_GREEN, "bakeSeconds": 300}
    cluster, old, new = ready(**strategy)
    decide(cluster, new, "Promote", **strategy)
    assert states(cluster) == {new: "Baking", old: "Standby"}
    cluster.wait(300)
    cluster.settle()
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert verdict(cluster, new) == "Promoted"


def test_a_pin_of_the_model_before_returns_to_its_warm_revision_at_once() -> None:
    cluster, old, new = ready(bakeSeconds=300)
    cluster.edit(models=[{"name": "router", "pin": {"checkpoint": "first"}}])
    cluster.reconcile()
    assert cluster.points_at == old
    assert set(cluster.deployments) == {old, new}
    cluster.settle()
    assert states(cluster) == {old: "Baking", new: "Standby"}


def test_another_champion_ends_the_bake_of_the_one_before() -> None:
    cluster, old, second = ready(bakeSeconds=300)
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.settle()
    (third,) = set(cluster.deployments) - {old, second}
    assert old not in cluster.deployments
    assert states(cluster) == {third: "RollingOut", second: "Live", old: "Retired"}


def test_a_pause_holds_a_bake_and_a_regression_ends_it_still() -> None:
    cluster, old, new = ready(bakeSeconds=300)
    cluster.edit(strategy={"bakeSeconds": 300, "paused": True})
    cluster.wait(400)
    cluster.settle()
    assert states(cluster) == {new: "Baking", old: "Standby"}
    cluster.put(crashed_pod(new))
    cluster.settle()
    assert cluster.points_at == old


@pytest.mark.parametrize("lost", ["new", "old"])
def test_a_bake_survives_the_deletion_of_either_deployment(lost: str) -> None:
    cluster, old, new = ready(bakeSeconds=300)
    del cluster.deployments[{"new": new, "old": old}[lost]]
    cluster.settle()
    left = {"new": old, "old": new}[lost]
    assert (cluster.points_at, list(cluster.deployments)) == (left, [left])


def test_a_bake_after_recreate_starts_the_old_revision_again() -> None:
    cluster, old = serving(strategy={"type": "Recreate", "bakeSeconds": 300})
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.make_ready(new)
    cluster.settle()
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert cluster.deployments[old]["spec"]["replicas"] == 0
    cluster.put(crashed_pod(new))
    cluster.settle()
    assert cluster.points_at == old
    assert {name: each["spec"]["replicas"] for name, each in cluster.deployments.items()} == {old: 1}


def lose_the_status(cluster: EndpointCluster) -> None:
    """Carry out one pass of an operator that is killed before it writes the status."""
    plan = cluster.cluster.plan("InferenceDeployment", "desk")
    cluster.cluster.carry_out("InferenceDeployment", "desk", plan, crash_before_status=True)


def lose_the_status_of_a_switch(cluster: EndpointCluster, old: str) -> bool:
    """Carry out one pass of an operator that is killed if the pass points the Service at another revision.

    Returns whether it was killed.
    """
    plan = cluster.cluster.plan("InferenceDeployment", "desk")
    services = (each.manifest for each in plan.apply if each.manifest["kind"] == "Service")
    is_switch = any(each["spec"]["selector"].get(REVISION, old) != old for each in services)
    cluster.cluster.carry_out("InferenceDeployment", "desk", plan, crash_before_status=is_switch)
    return is_switch


def test_a_bake_also_begins_if_the_operator_is_killed_after_it_moved_the_requests() -> None:
    cluster, old = serving(strategy={"bakeSeconds": 600})
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.make_ready(new)
    lose_the_status(cluster)
    assert (cluster.points_at, set(cluster.deployments)) == (new, {old, new})
    cluster.settle()
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert (cluster.points_at, set(cluster.deployments)) == (new, {old, new})
    cluster.put(crashed_pod(new))
    cluster.settle()
    assert (cluster.points_at, list(cluster.deployments)) == (old, [old])


@pytest.mark.parametrize(
    "strategy",
    [
        {"rollingUpdate": {"maxUnavailable": 1}},
        {"type": "Recreate"},
    ],
    ids=["rollingUpdate", "Recreate"],
)
def test_a_bake_also_begins_if_the_operator_is_killed_after_the_old_revision_lost_its_replicas(
    strategy: Manifest,
) -> None:
    cluster, old = serving(strategy={**strategy, "bakeSeconds": 600}, replicas=2)
    cluster.put(checkpoint("second", "2", promoted=10))
    while not lose_the_status_of_a_switch(cluster, old):
        for name in cluster.deployments:
            cluster.make_ready(name)
    (new,) = set(cluster.deployments) - {old}
    assert cluster.points_at == new
    cluster.settle()
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert set(cluster.deployments) == {old, new}


def test_the_status_has_the_models_of_the_old_revision_if_the_operator_is_killed_after_a_return() -> None:
    cluster, old, new = ready(bakeSeconds=600)
    cluster.put(crashed_pod(new))
    lose_the_status(cluster)
    assert cluster.points_at == old
    cluster.settle()
    assert cluster.endpoint.status.models[0].checkpoint == "first"


def test_a_return_restores_the_digest_of_the_base_model_in_the_status() -> None:
    cluster, old = serving(strategy={"bakeSeconds": 600})
    before = cluster.endpoint.status.base_model_digest
    pin = {"uri": f"pvc://artifacts/checkpoints/{'2' * 64}", "digest": digest("2")}
    base = {"uri": "pvc://models/base", "digest": digest("9")}
    cluster.edit(baseModel=base, models=[{"name": "router", "pin": pin}])
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.endpoint.status.base_model_digest == digest("9")
    cluster.put(crashed_pod(new))
    cluster.settle()
    assert cluster.points_at == old
    assert cluster.endpoint.status.base_model_digest == before


@pytest.mark.parametrize("bake", [{}, {"bakeSeconds": 600}])
def test_the_requests_return_if_the_new_revision_fails_while_no_operator_runs(bake: Manifest) -> None:
    cluster, old = serving(strategy=bake)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.make_ready(new)
    lose_the_status(cluster)
    cluster.deployments[new] = {**cluster.deployments[new], "status": {"observedGeneration": 1}}
    cluster.settle()
    assert (cluster.points_at, set(cluster.deployments)) == (old, {old, new})
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == new


def test_a_bake_ends_in_time_also_while_a_model_of_the_endpoint_is_held_back() -> None:
    follow = {"follow": {"modelLine": "tickets", "minScores": [{"metric": "bleu", "min": 0.5}]}}
    cluster, old, new = ready(bakeSeconds=600)
    models = [{"name": "router", "pin": {"checkpoint": "second"}}, {"name": "other", **follow}]
    cluster.edit(models=models)
    cluster.settle()
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "WaitingForCheckpoint"
    cluster.wait(100)
    assert cluster.reconcile().requeue_after == 500


def test_a_return_of_the_requests_is_finished_after_the_operator_was_killed_in_it() -> None:
    cluster, old, new = ready(bakeSeconds=600)
    cluster.put(crashed_pod(new, "2030-01-02T03:04:05Z"))
    lose_the_status(cluster)
    assert cluster.points_at == old
    cluster.reconcile()
    assert cluster.points_at == old, "not even for one pass"
    cluster.settle()
    assert cluster.points_at == old
    assert states(cluster) == {new: "RolledBack", old: "Live"}


@pytest.mark.parametrize(
    "strategy", [BLUE_GREEN, {"type": "Canary", "canary": {"steps": [{"setWeight": 10}]}}, {}]
)
def test_a_failed_revision_is_tried_again_if_the_one_that_serves_was_deleted(strategy: Manifest) -> None:
    cluster, old = serving(strategy={})
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.edit(strategy=strategy, replicas=10)
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    cluster.miss_deadline(new)
    cluster.settle()
    assert list(cluster.deployments) == [old]
    del cluster.deployments[old]
    cluster.settle()
    assert list(cluster.deployments) == [new]
    cluster.make_ready(new)
    cluster.settle()
    cluster.make_ready(new)
    cluster.settle()
    assert cluster.points_at == new
    assert states(cluster)[new] == "Live"


def test_a_node_that_restarts_in_a_bake_is_no_reason_to_return_the_requests() -> None:
    cluster, _, new = ready(bakeSeconds=600)
    pod = crashed_pod(new)
    pod["status"]["containerStatuses"][0]["lastState"]["terminated"] = {"exitCode": 255, "reason": "Unknown"}
    cluster.put(pod)
    cluster.settle()
    assert (cluster.points_at, states(cluster)[new]) == (new, "Baking")
