# SPDX-License-Identifier: Apache-2.0
"""A Job without a pod: the message repeats what the API server refuses, and says what to change."""

from datetime import timedelta

import pytest

from finetune_client.local.cluster import at
from finetune_operator.engine.resources import EVENT
from finetune_operator.observe.job_problems import RECHECK_SECONDS
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.registry import KIND_ROWS
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import JOB
from tests.unit.operator.runsteps import reached

FORBIDDEN = 'Error creating: pods "tickets-v1-train-0b5e7-zpx84" is forbidden: '


def refused(cluster: MemoryCluster, message: str, seconds_ago: int = 0) -> None:
    """The Job controller reports that the API server refused the pod of the train Job."""
    event: Manifest = {
        "kind": "Event",
        "metadata": {"name": cluster.stage_job("train")["metadata"]["uid"]},
        "message": message,
        "lastTimestamp": at(cluster.now - timedelta(seconds=seconds_ago)),
    }
    cluster.add(event)


def after(cluster: MemoryCluster, seconds: int) -> tuple[str, str]:
    """Reason and message of the run's condition, this much later."""
    cluster.now += timedelta(seconds=seconds)
    cluster.settle()
    found = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert found is not None
    return found["reason"], found["message"]


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        (
            FORBIDDEN + "exceeded quota: gpus, requested: pods=1, used: pods=6, limited: pods=6",
            "QuotaExceeded",
            "the train pod: exceeded quota: gpus, requested: pods=1, used: pods=6, limited: pods=6 (it",
        ),
        (
            FORBIDDEN + "failed quota: team: must specify limits.cpu for: trainer",
            "PodNotStarting",
            "for: trainer (set pods[].cpuLimitRequestRatio of ComputeProfile cpu)",
        ),
        (
            FORBIDDEN + "failed quota: team: must specify requests.ephemeral-storage for: trainer",
            "PodNotStarting",
            "(set it in pods[].resources of ComputeProfile cpu)",
        ),
        (
            FORBIDDEN + "cpu max limit to request ratio per Container is 4, but provided ratio is 25.000000",
            "PodNotStarting",
            "resources or pods[].cpuLimitRequestRatio of ComputeProfile cpu, or the LimitRange)",
        ),
        (
            f"(combined from similar events): {FORBIDDEN}maximum memory usage per Container is 3Gi",
            "PodNotStarting",
            "refuses the train pod: maximum memory usage per Container is 3Gi (change pods[].resources",
        ),
        (
            FORBIDDEN + "no PriorityClass with name nosuch was found",
            "PodNotStarting",
            "(create it, or correct pods[].priorityClassName of ComputeProfile cpu)",
        ),
        (
            FORBIDDEN + 'violates PodSecurity "restricted:latest": hostPath volumes',
            "PodNotStarting",
            "(check pods of ComputeProfile cpu, and webhooks that change pods)",
        ),
        (
            'Error creating: admission webhook "images.example.com" denied the request: no signature',
            "PodNotStarting",
            'the train pod: admission webhook "images.example.com" denied the request: no signature (kubectl',
        ),
    ],
)
def test_the_refusal_is_quoted_with_what_to_change(message: str, reason: str, text: str) -> None:
    cluster = reached("train")
    refused(cluster, message)
    found, shown = after(cluster, 11)
    assert found == reason
    assert text in shown
    assert "zpx84" not in shown


def test_events_are_read_only_for_a_job_that_waits_for_its_pod() -> None:
    cluster = reached("train")

    def asks() -> bool:
        needs = KIND_ROWS["FineTuneJob"].needs(*cluster.snapshot("FineTuneJob", JOB))
        return EVENT in needs

    assert not asks()
    cluster.now += timedelta(seconds=11)
    assert asks()
    cluster.pod("train", {})
    assert not asks()


def test_a_pass_follows_when_the_events_may_be_read_and_when_the_job_is_late() -> None:
    cluster = reached("train")
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 11
    cluster.now += timedelta(seconds=11)
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 30
    cluster.now += timedelta(seconds=30)
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 20
    reason, message = after(cluster, 20)
    assert reason == "PodNotStarting"
    assert "has no pod: a quota, a limit range, Pod Security" in message


def test_a_job_that_a_busy_job_controller_has_not_taken_yet_is_no_problem_for_five_minutes() -> None:
    cluster = reached("train")
    del cluster.stage_job("train")["status"]["startTime"]
    assert EVENT not in KIND_ROWS["FineTuneJob"].needs(*cluster.snapshot("FineTuneJob", JOB))
    cluster.settle()
    writes = cluster.writes
    assert after(cluster, 299) == ("Queued", "the train pod is being created")
    assert cluster.writes == writes
    reason, message = after(cluster, 2)
    assert reason == "PodNotStarting"
    assert message.endswith("for 5 minutes: check that kube-controller-manager runs")


def test_a_job_that_begins_late_has_as_much_time_for_its_pod_as_any_other() -> None:
    """Kueue may have suspended it for hours."""
    cluster = reached("train")
    cluster.now += timedelta(hours=3)
    cluster.stage_job("train")["status"]["startTime"] = at(cluster.now)
    assert after(cluster, 0)[0] == "Queued"
    assert after(cluster, 61)[0] == "PodNotStarting"


def test_a_refusal_of_long_ago_is_not_repeated() -> None:
    cluster = reached("train")
    refused(cluster, FORBIDDEN + "exceeded quota: gpus", seconds_ago=700)
    assert after(cluster, 11)[0] == "Queued"


def two_pods() -> MemoryCluster:
    """A run whose train stage has two pods, none of which exists yet."""
    return reached("train", compute={"devices": 1, "nodes": 2})


def test_a_refusal_is_not_repeated_once_a_pod_of_the_job_was_created_after_it() -> None:
    cluster = two_pods()
    refused(cluster, FORBIDDEN + "exceeded quota: gpus")
    assert after(cluster, 11)[0] == "QuotaExceeded"
    cluster.pod("train", {"waiting": {}}, index=0)
    cluster.pod("train", {"running": {"startedAt": at(cluster.now)}}, index=0)
    assert after(cluster, 11)[0] != "QuotaExceeded"


def test_a_refusal_after_the_newest_pod_is_quoted() -> None:
    cluster = two_pods()
    cluster.pod("train", {"running": {"startedAt": at(cluster.now)}}, index=0)
    refused(cluster, FORBIDDEN + "exceeded quota: gpus")
    assert after(cluster, 11)[0] == "QuotaExceeded"


def test_a_job_that_waits_for_its_next_attempt_is_checked_once_per_minute() -> None:
    cluster = reached("train")
    cluster.stage_job("train")["status"]["failed"] = 1
    cluster.now += timedelta(seconds=61)
    assert cluster.plan("FineTuneJob", JOB).requeue_after == RECHECK_SECONDS
