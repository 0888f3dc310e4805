# SPDX-License-Identifier: Apache-2.0
"""Rollouts: which revision starts, when the Service switches, and what happens if a revision cannot start."""

from typing import Any

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import REVISION, RUN
from finetune_operator.api.pod_resources import quantity_value
from finetune_operator.manifests.engines.engine_table import ENGINES
from finetune_operator.stage_table import STAGES
from finetune_trainer.contract.serving import EngineName
from tests.unit.operator.endpoints import EndpointCluster, checkpoint, digest, profile
from tests.unit.operator.runobjects import sized


def failed_pod(revision: str, exit_code: int, message: str) -> dict[str, Any]:
    owner = {"kind": "ReplicaSet", "name": f"{revision}-5d4f8", "uid": "replicaset-uid", "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{revision}-pod",
            "labels": {RUN: "endpoint-uid", REVISION: revision},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "node-1"},
        "status": {
            "initContainerStatuses": [
                {
                    "name": "fetch",
                    "image": "registry.example/trainer:1",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": exit_code, "message": message}},
                }
            ]
        },
    }


def serving_cluster() -> tuple[EndpointCluster, str]:
    """An endpoint that serves checkpoint `first`, and its revision."""
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    assert cluster.condition("Ready") is not None
    return cluster, revision


def promote_second(cluster: EndpointCluster, old: str, **spec: Any) -> str:
    """Make a second checkpoint the champion. Returns the name of its revision."""
    cluster.put(checkpoint("second", "2", promoted=10, **spec))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    return new


def test_without_a_promoted_checkpoint_nothing_is_created_and_the_condition_names_the_line() -> None:
    cluster = EndpointCluster(checkpoint("unpromoted", "1", promoted=None))
    cluster.settle()
    assert not cluster.deployments
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "WaitingForCheckpoint"
    assert "tickets" in message


def test_the_first_checkpoint_gets_a_deployment_and_the_endpoint_is_ready_only_with_it() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (revision,) = cluster.deployments
    assert cluster.points_at == revision
    assert cluster.condition("Ready") is None
    cluster.make_ready(revision)
    cluster.settle()
    assert cluster.condition("Ready") is not None
    (served,) = cluster.endpoint.status.models
    assert (served.checkpoint, served.digest) == ("first", digest("1"))
    assert cluster.endpoint.status.url == "http://desk.team.svc/v1"


def test_a_new_champion_serves_only_once_it_is_ready_and_only_then_the_old_revision_goes() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    assert cluster.points_at == old
    assert cluster.endpoint.status.models[0].checkpoint == "first"
    cluster.make_ready(new)
    cluster.log.clear()
    cluster.reconcile()
    assert {r.name: r.state for r in cluster.endpoint.status.revisions} == {new: "Live", old: "Retired"}
    cluster.settle()
    assert cluster.points_at == new
    assert list(cluster.deployments) == [new]
    assert cluster.log.index("apply Service desk") < cluster.log.index(f"delete {old}")
    assert {r.name: r.state for r in cluster.endpoint.status.revisions} == {new: "Live", old: "Retired"}


def test_a_revision_past_its_deadline_is_removed_and_the_old_one_keeps_serving() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.miss_deadline(new)
    cluster.settle()
    assert cluster.points_at == old
    assert list(cluster.deployments) == [old]
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "RolloutFailed"
    assert f"{old} keeps serving" in message
    assert cluster.endpoint.status.models[0].checkpoint == "first"


def test_a_corrupt_artifact_fails_the_rollout_at_once_with_the_pods_own_words() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.put(failed_pod(new, 10, "ArtifactCorrupt: adapter_model.safetensors has another digest"))
    cluster.settle()
    assert cluster.points_at == old
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "RolloutFailed"
    assert "adapter_model.safetensors" in message


def test_a_passing_trouble_does_not_fail_the_rollout() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.put(failed_pod(new, 12, "StoreUnavailable: input/output error"))
    cluster.settle()
    assert set(cluster.deployments) == {old, new}
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "PodNotStarting"
    assert "input/output error" in message


def test_a_failed_revision_is_tried_again_after_an_edit_and_not_before() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.miss_deadline(new)
    cluster.settle()
    cluster.settle()
    assert new not in cluster.deployments
    cluster.edit(strategy={"progressDeadlineSeconds": 1200})
    cluster.settle()
    assert new in cluster.deployments
    assert cluster.condition("Stalled") is None


def test_scaling_does_not_start_a_failed_revision_again() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.miss_deadline(new)
    cluster.settle()
    cluster.edit(replicas=2)
    cluster.settle()
    assert list(cluster.deployments) == [old]
    assert cluster.deployments[old]["spec"]["replicas"] == 2


def test_a_restarting_replica_is_no_rollout() -> None:
    cluster, revision = serving_cluster()
    live = cluster.deployments[revision]
    cluster.deployments[revision] = {**live, "status": {**live["status"], "readyReplicas": 0}}
    cluster.log.clear()
    cluster.settle()
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert (reason, message) == ("Scaling", f"0 of 1 replicas of {revision} are ready")
    assert [r.state for r in cluster.endpoint.status.revisions] == ["Live"]
    cluster.deployments[revision] = live
    cluster.settle()
    assert cluster.condition("Ready") is not None
    assert cluster.log == []


def test_an_endpoint_that_waits_for_its_profile_can_still_be_scaled() -> None:
    cluster, revision = serving_cluster()
    cluster.cluster.remove("ComputeProfile", "standard")
    cluster.edit(replicas=2)
    cluster.settle()
    assert cluster.deployments[revision]["spec"]["replicas"] == 2
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "ProfileNotFound"


def test_a_model_whose_record_was_deleted_keeps_being_served() -> None:
    models = [
        {"name": "router", "follow": {"modelLine": "tickets"}},
        {"name": "writer", "pin": {"checkpoint": "pinned"}},
    ]
    cluster = EndpointCluster(
        checkpoint("first", "1"), checkpoint("pinned", "9", promoted=None), models=models
    )
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    cluster.cluster.remove("Checkpoint", "pinned")
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "CheckpointNotFound"
    assert "model writer serves checkpoint pinned, whose record was deleted" in message


def test_an_endpoint_for_another_base_model_uri_takes_no_checkpoint() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), baseModel={"uri": "pvc://models/other"})
    cluster.settle()
    assert not cluster.deployments
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "BaseModelMismatch"
    assert "spec.baseModel.uri is pvc://models/other" in message


def test_many_long_model_names_fit_into_the_columns() -> None:
    models = [{"name": f"{'m' * 37}-{n:02}", "follow": {"modelLine": "tickets"}} for n in range(32)]
    cluster = EndpointCluster(checkpoint("first", "1"), models=models)
    cluster.settle()
    assert cluster.endpoint.status.display is not None
    assert len(cluster.endpoint.status.display.models or "") <= 200


def test_the_newest_evaluation_decides_on_the_score() -> None:
    follow = {"modelLine": "tickets", "minScores": [{"metric": "exact_match", "min": 0.9}]}
    judged = checkpoint("first", "1").to_dict()
    judged["status"]["evaluations"] = [
        {
            "checkpoint": "first",
            "source": "Run",
            "verdict": "Passed",
            "scores": [{"metric": "exact_match", "subject": "Tuned", "value": value, "rows": 20}],
        }
        for value in (0.95, 0.1)
    ]
    cluster = EndpointCluster(
        Checkpoint.model_validate(judged), models=[{"name": "router", "follow": follow}]
    )
    cluster.settle()
    assert len(cluster.deployments) == 1


@pytest.mark.parametrize(
    ("source", "rows", "required", "is_served"),
    [
        ("last-month", "tickets-1", "tickets-1", True),
        ("last-month", "tickets-easy", "tickets-1", False),
        ("last-month", "tickets-easy", None, True),
        (None, "experts-1", "experts-1", True),
        (None, "experts-1", "tickets-1", False),
    ],
)
def test_a_follower_can_require_the_rows_of_a_score(
    source: str | None, rows: str, required: str | None, is_served: bool
) -> None:
    judged = checkpoint("first", "1").to_dict()
    entry = {
        "checkpoint": "first",
        "verdict": "Passed",
        "scores": [{"metric": "exact_match", "subject": "Tuned", "value": 0.95, "rows": 20}],
    }
    judged["status"]["evaluations"] = [entry | {"source": source or "Run", "datasetVersion": rows}]
    bar = {"metric": "exact_match", "min": 0.9, "evaluation": source, "datasetVersion": required}
    bar = {key: value for key, value in bar.items() if value is not None}
    follow = {"modelLine": "tickets", "minScores": [bar]}
    cluster = EndpointCluster(
        Checkpoint.model_validate(judged), models=[{"name": "router", "follow": follow}]
    )
    cluster.settle()
    assert bool(cluster.deployments) is is_served
    if not is_served:
        _, message = cluster.condition("Reconciling") or ("", "")
        assert f"on the rows of DatasetVersion {rows}, not of {required}" in message


def test_a_failed_rollout_is_reported_once() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.miss_deadline(new)
    cluster.log.clear()
    cluster.settle()
    cluster.settle()
    messages = {c.message for c in cluster.endpoint.status.conditions if c.type == "Stalled"}
    assert len(messages) == 1
    assert cluster.log.count(f"delete {new}") == 1


def test_the_only_revision_of_an_endpoint_keeps_trying_after_its_deadline() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.miss_deadline(revision)
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    assert cluster.condition("Stalled") is not None
    cluster.make_ready(revision)
    cluster.settle()
    assert cluster.condition("Ready") is not None
    assert cluster.condition("Stalled") is None


def test_a_rollout_overtaken_by_a_newer_champion_is_given_up() -> None:
    cluster, old = serving_cluster()
    overtaken = promote_second(cluster, old)
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.settle()
    assert overtaken not in cluster.deployments
    assert old in cluster.deployments
    assert len(cluster.deployments) == 2


def test_a_rejected_champion_rolls_back_to_the_one_before() -> None:
    cluster, old = serving_cluster()
    new = promote_second(cluster, old)
    cluster.make_ready(new)
    cluster.settle()
    cluster.put(checkpoint("second", "2", promoted=10, approval={"state": "Rejected"}))
    cluster.settle()
    assert set(cluster.deployments) == {old, new}
    cluster.make_ready(old)
    cluster.settle()
    assert cluster.points_at == old


def test_when_every_checkpoint_is_rejected_what_serves_keeps_serving() -> None:
    cluster, old = serving_cluster()
    cluster.put(checkpoint("first", "1", approval={"state": "Rejected"}))
    cluster.settle()
    assert list(cluster.deployments) == [old]
    assert cluster.points_at == old


def test_a_checkpoint_of_another_base_model_is_not_rolled_out() -> None:
    cluster, old = serving_cluster()
    second = checkpoint("second", "2", promoted=10).to_dict()
    second["spec"]["lineage"]["baseModel"]["digest"] = digest("c")
    cluster.put(Checkpoint.model_validate(second))
    cluster.settle()
    assert list(cluster.deployments) == [old]
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "BaseModelMismatch"
    assert "second" in message


def test_a_follower_that_needs_approval_waits_for_it() -> None:
    follow = {"modelLine": "tickets", "requireApproval": True}
    cluster = EndpointCluster(checkpoint("first", "1"), models=[{"name": "router", "follow": follow}])
    cluster.settle()
    assert not cluster.deployments
    assert "not approved" in (cluster.condition("Reconciling") or ("", ""))[1]
    cluster.put(checkpoint("first", "1", approval={"state": "Approved"}))
    cluster.settle()
    assert len(cluster.deployments) == 1


def test_a_follower_refuses_scores_below_its_own_bar() -> None:
    follow = {"modelLine": "tickets", "minScores": [{"metric": "exact_match", "min": 0.9}]}
    cluster = EndpointCluster(checkpoint("first", "1"), models=[{"name": "router", "follow": follow}])
    cluster.settle()
    assert "exact_match was not measured" in (cluster.condition("Reconciling") or ("", ""))[1]


def test_a_pinned_checkpoint_is_served_whatever_the_champion_is() -> None:
    cluster = EndpointCluster(
        checkpoint("first", "1", promoted=None),
        checkpoint("second", "2"),
        models=[{"name": "router", "pin": {"checkpoint": "first"}}],
    )
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    assert cluster.endpoint.status.models[0].checkpoint == "first"


def test_a_pin_on_a_missing_checkpoint_says_so() -> None:
    cluster = EndpointCluster(models=[{"name": "router", "pin": {"checkpoint": "gone"}}])
    cluster.settle()
    assert cluster.condition("Reconciling") == (
        "CheckpointNotFound",
        "model router pins checkpoint gone, which does not exist in this namespace",
    )


def test_scaling_changes_the_replicas_and_gives_several_of_them_a_budget() -> None:
    cluster, revision = serving_cluster()
    cluster.log.clear()
    cluster.edit(replicas=3)
    cluster.reconcile()
    assert cluster.deployments[revision]["spec"]["replicas"] == 3
    (budget,) = cluster.disruption_budgets
    assert cluster.log == [f"apply Deployment {revision}", f"apply PodDisruptionBudget {budget}"]


def test_another_default_image_of_the_operator_restarts_no_endpoint() -> None:
    cluster, revision = serving_cluster()
    cluster.put(profile(images={"trainer": "registry.example/other:2"}))
    cluster.settle()
    assert len(cluster.deployments) == 2, "an image that the profile names is the user's choice"
    cluster.put(profile())
    cluster.settle()
    assert list(cluster.deployments) == [revision]


def test_a_fully_trained_model_takes_the_place_of_the_base_model() -> None:
    cluster = EndpointCluster(checkpoint("first", "1", type="Full"))
    cluster.settle()
    (deployment,) = cluster.deployments.values()
    pod = deployment["spec"]["template"]["spec"]
    (config,) = (v["value"] for v in pod["initContainers"][0]["env"] if v["name"] == "FINETUNE_CONFIG")
    assert '"kind":"models"' not in config


def test_a_fully_trained_model_cannot_share_an_endpoint() -> None:
    cluster = EndpointCluster(
        checkpoint("first", "1", type="Full"),
        models=[
            {"name": "one", "pin": {"checkpoint": "first"}},
            {"name": "two", "follow": {"modelLine": "other"}},
        ],
    )
    cluster.settle()
    assert not cluster.deployments
    assert "its own InferenceDeployment" in (cluster.condition("Reconciling") or ("", ""))[1]


def test_an_endpoint_being_deleted_is_left_alone() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    raw = cluster.endpoint.to_dict()
    raw["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    cluster.endpoint = InferenceDeployment.model_validate(raw)
    plan = cluster.reconcile()
    assert plan.create == ()
    assert plan.status is None


def test_a_replica_requests_all_devices_over_which_the_engine_spreads_the_model() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), compute={"devices": 2})
    cluster.put(profile(accelerator={"resource": "nvidia.com/gpu", "maxPerPod": 8}))
    cluster.settle()
    (deployment,) = cluster.deployments.values()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_cores_of_a_cpu_are_threads_of_the_engine() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"), compute={"devices": 4})
    cluster.put(profile(accelerator={"resource": "cpu", "maxPerPod": 8}))
    cluster.settle()
    (deployment,) = cluster.deployments.values()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == "4"


@pytest.mark.parametrize("engine", ENGINES)
def test_by_default_an_endpoint_gets_the_processor_time_of_any_stage(engine: EngineName) -> None:
    served = quantity_value(ENGINES[engine].default_resources.cpu)
    assert [stage for stage, row in STAGES.items() if quantity_value(row.resources.cpu) > served] == []


@pytest.mark.parametrize(
    ("resources", "cpu"),
    [
        ({"train": {"cpu": "1500m", "memory": "4Gi"}, "merge": {"cpu": "1", "memory": "4Gi"}}, "1500m"),
        ({"train": {"cpu": "500m", "memory": "4Gi"}}, "1"),
        ({"train": {"cpu": "2", "memory": "4Gi"}, "serve": {"cpu": "200m", "memory": "2Gi"}}, "200m"),
    ],
)
def test_cores_of_an_endpoint_follow_the_stages_unless_the_profile_sets_them(
    resources: dict[str, Any], cpu: str
) -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.put(profile(accelerator={"resource": "cpu", "maxPerPod": 8}, pods=sized(**resources)))
    cluster.settle()
    (deployment,) = cluster.deployments.values()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == cpu


def test_an_endpoint_that_requests_too_many_devices_keeps_serving_and_says_so() -> None:
    cluster, revision = serving_cluster()
    cluster.put(profile(accelerator={"resource": "nvidia.com/gpu", "maxPerPod": 1}))
    cluster.edit(compute={"devices": 2})
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    assert cluster.points_at == revision
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "TooManyDevices"
