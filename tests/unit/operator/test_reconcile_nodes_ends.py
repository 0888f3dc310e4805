# SPDX-License-Identifier: Apache-2.0
"""The end of pods that trained together: the message of their run, and their usage."""

from datetime import timedelta

import pytest

from finetune_client.local.cluster import at
from finetune_trainer.contract.vocabulary import ExitCode
from tests.unit.operator.nodesteps import (
    both_run,
    ended,
    running,
    state,
    training,
)
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    JOB,
    failed,
    trained,
)

PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


def test_a_pod_that_lost_another_one_is_no_failure() -> None:
    cluster = training()
    both_run(cluster)
    cluster.pod("train", ended(cluster, ExitCode.PEER_LOST), index=1)
    said = "train pod 1 ended because it lost another pod of the run; the next pod follows"
    assert state(cluster) == ("Queued", said)
    cluster.pod("train", ended(cluster, 137), index=0, conditions=[PREEMPTED])
    reason, message = state(cluster)
    assert reason == "Queued"
    assert "failed" not in message


@pytest.mark.parametrize("newer", [0, 1])
@pytest.mark.parametrize("failing", [0, 1])
def test_the_message_is_that_of_the_pod_that_failed_and_not_of_the_pods_that_noticed(
    failing: int, newer: int
) -> None:
    cluster = training()
    cluster.pod("train", running(cluster), index=1 - newer)
    cluster.now += timedelta(seconds=1)
    cluster.pod("train", running(cluster), index=newer)
    cluster.now += timedelta(seconds=30)
    cluster.pod("train", ended(cluster, 137, reason="OOMKilled"), index=failing)
    cluster.now += timedelta(seconds=3)
    cluster.pod("train", ended(cluster, ExitCode.PEER_LOST, "lost a peer"), index=1 - failing)
    cluster.stage_job("train")["status"] = {"failed": 1}
    reason, message = state(cluster)
    assert reason == "Queued"
    assert message.startswith(
        f"train failed with OutOfMemory and is retried (pod failure 1 of 4): train pod {failing} was killed"
    )
    cluster.end_job("train", "Failed", "BackoffLimitExceeded")
    assert state(cluster, "Stalled")[0] == "OutOfMemory"


def test_the_newest_attempt_decides_and_in_it_the_first_that_failed() -> None:
    """Not an earlier attempt's failure, and not a pod that failed only after the other one had."""
    cluster = training()
    cluster.pod("train", ended(cluster, 137, reason="OOMKilled"), "first", index=0)
    cluster.pod("train", ended(cluster, ExitCode.PEER_LOST), "first", index=1)
    cluster.now += timedelta(seconds=20)
    for index in (0, 1):
        cluster.pod("train", running(cluster), "second", index=index)
    cluster.now += timedelta(seconds=20)
    no_loss = failed("train", "LossNotFinite", "NaN at step 12").to_json()
    cluster.pod("train", ended(cluster, 1, no_loss), "second", index=1)
    cluster.now += timedelta(seconds=2)
    cluster.pod("train", ended(cluster, 1, "connection closed by peer"), "second", index=0)
    cluster.end_job("train", "Failed", "BackoffLimitExceeded")
    assert state(cluster, "Stalled") == ("LossNotFinite", "NaN at step 12")


def test_a_clock_of_a_node_that_is_behind_hides_no_failure() -> None:
    cluster = training()
    pod = cluster.pod("train", ended(cluster, 137, reason="OOMKilled"), index=0)
    pod["metadata"]["creationTimestamp"] = at(cluster.now + timedelta(seconds=30))
    cluster.pod("train", ended(cluster, ExitCode.PEER_LOST), index=1)
    cluster.end_job("train", "Failed", "BackoffLimitExceeded")
    assert state(cluster, "Stalled")[0] == "OutOfMemory"


def test_a_failed_job_waits_for_the_word_of_the_pod_that_failed() -> None:
    cluster = training()
    both_run(cluster)
    cluster.pod("train", ended(cluster, ExitCode.PEER_LOST), index=0)
    cluster.end_job("train", "Failed", "PodFailurePolicy")
    assert state(cluster) == ("Training", "train is running")
    bad = failed("train", "InvalidConfig", "targetModules: nothing is called so").to_json()
    cluster.pod("train", ended(cluster, ExitCode.BAD_CONFIG, bad), index=1)
    assert state(cluster, "Stalled") == ("InvalidConfig", "targetModules: nothing is called so")


def test_a_pod_that_has_done_its_part_is_no_trouble_while_the_first_still_publishes() -> None:
    cluster = training()
    both_run(cluster)
    cluster.pod("train", ended(cluster, ExitCode.OK), index=1, phase="Succeeded")
    assert state(cluster) == ("Training", "train is running")


def test_the_result_is_that_of_the_pod_that_has_one_whichever_ended_last() -> None:
    cluster = training()
    cluster.pod("train", ended(cluster, ExitCode.OK, trained().to_json()), index=0)
    cluster.now += timedelta(seconds=5)
    cluster.pod("train", ended(cluster, ExitCode.OK), index=1)
    cluster.end_job("train", "Complete")
    cluster.settle()
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}
    assert not cluster.has_stage_job("collect")


def test_a_result_whose_pod_is_gone_is_collected() -> None:
    cluster = training()
    cluster.pod("train", ended(cluster, ExitCode.OK), index=1)
    cluster.end_job("train", "Complete")
    cluster.now += timedelta(seconds=11)
    assert state(cluster)[0] == "Collecting"
    assert cluster.stage_job("collect")["spec"]["completionMode"] == "NonIndexed"


def test_device_seconds_are_of_all_pods_and_seconds_are_those_of_the_stage() -> None:
    cluster = training(compute={"nodes": 2, "devices": 2})
    cluster.now += timedelta(seconds=30)
    cluster.pod("train", running(cluster), index=0)
    cluster.now += timedelta(seconds=10)
    cluster.pod("train", running(cluster), index=1)
    cluster.settle()
    created = cluster.now - timedelta(seconds=40)
    cluster.now += timedelta(seconds=50)
    for index, began in ((0, 30), (1, 40)):
        times = {"startedAt": at(created + timedelta(seconds=began)), "finishedAt": at(cluster.now)}
        message = trained().to_json() if index == 0 else ""
        cluster.pod("train", {"terminated": {"exitCode": 0, "message": message, **times}}, index=index)
    cluster.end_job("train", "Complete")
    cluster.settle()
    stages = cluster.objects["FineTuneJob", JOB]["status"]["stages"]
    (train,) = (stage for stage in stages if stage["name"] == "train")
    assert train["queuedSeconds"] == 30
    assert train["seconds"] == 60
    assert train["deviceSeconds"] == 2 * (60 + 50)


def test_a_pod_that_has_done_its_part_may_go_before_the_first_has_published() -> None:
    cluster = training()
    cluster.pod("train", running(cluster), index=0)
    cluster.stage_job("train")["status"] = {"succeeded": 1}
    cluster.now += timedelta(seconds=90)
    assert state(cluster) == ("Training", "train is running")


def test_while_a_job_that_cannot_go_on_takes_its_other_pods_away_no_pod_is_announced() -> None:
    cluster = training()
    both_run(cluster)
    cluster.pod("train", ended(cluster, ExitCode.BAD_CONFIG, "no such module"), index=0)
    name = next(name for name in cluster.of("Pod") if name.endswith("-1-pod"))
    cluster.remove("Pod", name)
    cluster.stage_job("train")["status"] = {"failed": 1}
    assert state(cluster) == ("Training", "train is running")
