# SPDX-License-Identifier: Apache-2.0
"""A run whose train stage has several pods at once."""

from datetime import timedelta

import pytest

from finetune_client.local.cluster import at
from finetune_trainer.contract.configs import TrainConfig
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.nodesteps import (
    TWO,
    both_run,
    preflighted_run,
    running,
    service_of,
    state,
    training,
)
from tests.unit.operator.runobjects import (
    JOB,
    JOB_UID,
    STORE,
    claim,
    dataset,
    finetunejob,
    profile,
    trained,
)
from tests.unit.operator.runsteps import ended as finished_run
from tests.unit.operator.runsteps import reached

NO_ROOM = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
}


def test_the_service_is_made_before_the_job_and_only_for_the_stage_that_needs_it() -> None:
    cluster = reached("preflight", **TWO)
    assert cluster.of("Service") == {}
    assert cluster.config("preflight").nodes == 2
    training_ = training()
    kinds = [kind for kind, _ in training_.objects]
    assert kinds.index("Service") < len(kinds) - 1 - kinds[::-1].index("Job")
    training_.succeed("train", trained(), after=10)
    training_.settle()
    evaluation = training_.stage_job("evaluate")["spec"]
    assert evaluation["completionMode"] == "NonIndexed"
    assert "subdomain" not in evaluation["template"]["spec"]


def test_each_pod_has_an_index_and_the_name_by_which_the_others_find_the_first() -> None:
    cluster = training()
    job, service = cluster.stage_job("train"), service_of(cluster)
    spec, name = job["spec"], service["metadata"]["name"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["template"]["spec"]["subdomain"] == name
    config = cluster.config("train")
    assert isinstance(config, TrainConfig)
    assert config.coordinator == f"{job['metadata']['name']}-0.{name}"
    assert (config.nodes, config.devices) == (2, 1)
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["ownerReferences"][0]["uid"] == JOB_UID


def test_the_names_keep_their_limits_for_the_longest_run_and_one_that_begins_with_a_digit() -> None:
    run = finetunejob(compute={"nodes": 64})
    run["metadata"]["name"] = "9" * 40
    cluster = preflighted_run(run)
    service = service_of(cluster)["metadata"]["name"]
    assert len(f"{cluster.stage_job('train')['metadata']['name']}-63") <= 63
    assert len(service) <= 63
    assert service[0].isalpha()


def test_accelerators_are_processes_and_cores_are_not() -> None:
    gpus = profile("gpu", default=False, accelerator={"resource": "nvidia.com/gpu", "maxPerPod": 4})
    run = finetunejob(compute={"profile": "gpu", "devices": 4, "nodes": 2})
    cluster = preflighted_run(run, gpus)
    assert (cluster.config("train").nodes, cluster.config("train").devices) == (2, 4)
    (container,) = cluster.stage_job("train")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    cores = training(compute={"nodes": 2, "devices": 4})
    assert (cores.config("train").nodes, cores.config("train").devices) == (2, 1)


def test_a_run_in_one_pod_has_neither_service_nor_coordinator() -> None:
    cluster = reached("train")
    assert cluster.of("Service") == {}
    assert cluster.stage_job("train")["spec"]["completionMode"] == "NonIndexed"
    config = cluster.config("train")
    assert (config.coordinator, config.nodes, config.devices) == (None, 1, 1)


def test_a_store_that_pods_on_two_nodes_cannot_mount_is_named_unless_all_are_on_one() -> None:
    spread = profile(store={"uri": STORE})
    cluster = MemoryCluster(spread, claim("artifacts"), claim("models"), dataset(), finetunejob(**TWO))
    assert state(cluster)[0] == "StoreNotShareable"
    assert training().has_stage_job("train")


def test_a_service_that_is_deleted_is_created_again_while_pods_need_it() -> None:
    cluster = training()
    both_run(cluster)
    name = service_of(cluster)["metadata"]["name"]
    cluster.remove("Service", name)
    cluster.settle()
    assert service_of(cluster)["metadata"]["name"] == name


def test_suspending_leaves_the_service_for_the_job_that_comes_after() -> None:
    cluster = training()
    both_run(cluster)
    before = service_of(cluster)["metadata"]["uid"]
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB)["Suspended"] == "Suspended"
    assert not cluster.has_stage_job("train")
    cluster.change("FineTuneJob", JOB, suspend=False)
    cluster.settle()
    assert cluster.has_stage_job("train")
    assert service_of(cluster)["metadata"]["uid"] == before


def test_no_second_job_comes_before_all_pods_of_a_deleted_one_have_ended() -> None:
    cluster = training()
    both_run(cluster)
    job = cluster.stage_job("train")
    del cluster.objects["Job", job["metadata"]["name"]]
    zero = cluster.objects["Pod", f"{job['metadata']['name']}-0-pod"]
    zero["status"]["phase"] = "Succeeded"
    assert state(cluster)[0] == "Queued"
    assert not cluster.has_stage_job("train")
    one = cluster.objects["Pod", f"{job['metadata']['name']}-1-pod"]
    one["status"]["phase"] = "Failed"
    cluster.settle()
    assert cluster.has_stage_job("train")


def test_the_service_goes_with_the_finished_jobs() -> None:
    cluster = finished_run(**TWO, childrenTTLSeconds=60)
    assert cluster.of("Service")
    cluster.now += timedelta(seconds=61)
    cluster.settle()
    assert cluster.of("Service") == {}
    assert not cluster.has_stage_job("train")


def test_a_failed_run_keeps_the_service_as_long_as_a_job_of_its_has_pods() -> None:
    cluster = training(childrenTTLSeconds=0)
    both_run(cluster)
    stalled = {"type": "Stalled", "status": "True", "reason": "StageFailed"}
    end = {**stalled, "lastTransitionTime": at(cluster.now)}
    cluster.objects["FineTuneJob", JOB]["status"]["conditions"] = [end]
    cluster.settle()
    assert cluster.of("Service")
    cluster.end_job("train", "Failed")
    cluster.settle()
    assert cluster.of("Service") == {}


def test_it_trains_when_all_its_pods_run_and_reports_missing_pods_until_then() -> None:
    cluster = training()
    assert state(cluster) == ("Queued", "the train pods are being created")
    cluster.pod("train", {}, index=0)
    cluster.pod("train", {}, index=1, conditions=[NO_ROOM])
    reason, message = state(cluster)
    assert reason == "Unschedulable"
    assert message.startswith("0 of 2 pods are running; no node can take train pod 1 yet: no nodes")
    cluster.pod("train", running(cluster), index=0)
    assert state(cluster)[1].startswith("1 of 2 pods is running; no node can take train pod 1 yet")
    cluster.pod("train", running(cluster), index=1)
    assert state(cluster) == ("Training", "train is running")


def test_a_problem_that_needs_action_is_reported_before_a_wait() -> None:
    cluster = training()
    cluster.pod("train", {}, index=0, conditions=[NO_ROOM])
    cluster.pod("train", {"waiting": {"reason": "ErrImagePull", "message": "no such tag"}}, index=1)
    reason, message = state(cluster)
    assert reason == "ImageUnavailable"
    assert "of train pod 1 cannot be pulled" in message


def test_pods_that_are_created_one_by_one_write_no_status_each() -> None:
    cluster = training()
    cluster.settle()
    before = cluster.writes
    for index in (1, 0):
        cluster.pod("train", {}, index=index)
        cluster.settle()
        cluster.pod("train", {"waiting": {"reason": "ContainerCreating"}}, index=index)
        cluster.settle()
    assert cluster.writes == before


def test_a_job_that_never_gets_its_second_pod_reports_which_command_shows_why() -> None:
    cluster = training()
    cluster.pod("train", running(cluster), index=0)
    cluster.now += timedelta(seconds=61)
    reason, message = state(cluster)
    assert reason == "PodNotStarting"
    assert message.startswith("1 of 2 pods is running; Job tickets-v1-train-")
    assert "lacks a pod: a quota" in message


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_of_any_pod_is_reported(lost: int) -> None:
    cluster = training()
    both_run(cluster)
    pod = cluster.pod(
        "train",
        running(cluster),
        index=lost,
        conditions=[
            {"type": "Ready", "status": "False"},
            {"type": "ContainersReady", "status": "True"},
        ],
    )
    pod["spec"] = {**pod["spec"], "nodeName": "worker-7"}
    reason, message = state(cluster)
    assert reason == "NodeLost"
    assert f"of train pod {lost} " in message


def test_a_job_that_kueue_holds_back_is_queued_with_all_its_pods() -> None:
    cluster = preflighted_run(
        finetunejob(compute={"nodes": 2, "profile": "team"}),
        profile("team", default=False, kueue={"queues": {"train": "team"}}),
    )
    job = cluster.stage_job("train")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    job["spec"]["suspend"] = True
    cluster.now += timedelta(days=1)
    reason, message = state(cluster)
    assert reason == "Queued"
    assert message.startswith("the train Job waits in LocalQueue team for admission")


@pytest.mark.parametrize("going", [0, 1])
def test_a_pass_follows_when_the_grace_period_of_any_pod_is_over(going: int) -> None:
    cluster = training()
    both_run(cluster)
    pod = cluster.pod("train", running(cluster), index=going)
    pod["spec"] = {**pod["spec"], "nodeName": "worker-7"}
    pod["metadata"]["deletionTimestamp"] = at(cluster.now + timedelta(seconds=20))
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 51
    cluster.now += timedelta(seconds=51)
    reason, message = state(cluster)
    assert reason == "NodeLost"
    which = f"train pod {going} {pod['metadata']['name']}"
    assert message.startswith(f"1 of 2 pods is running; {which} should have ended")


def test_a_pass_follows_the_grace_period_of_a_pod_although_another_one_waits() -> None:
    cluster = training()
    pod = cluster.pod("train", running(cluster), index=0)
    pod["metadata"]["deletionTimestamp"] = at(cluster.now + timedelta(seconds=20))
    cluster.pod("train", {}, index=1, conditions=[NO_ROOM])
    assert state(cluster)[0] == "Unschedulable"
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 51
