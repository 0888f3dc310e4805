# SPDX-License-Identifier: Apache-2.0
"""Two runs of several pods that each hold a part of the devices: the younger one gives its part back."""

from copy import deepcopy
from datetime import timedelta
from typing import Final

import pytest

from finetune_client.local.cluster import at
from finetune_operator.api.stage_status import RetryStatus
from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.stages.retries import count_failure, due_at
from finetune_trainer.contract.vocabulary import Stage
from tests.unit.operator.memorycluster import NOW, MemoryCluster
from tests.unit.operator.nodesteps import running, training
from tests.unit.operator.runobjects import JOB, profile

EARLIER, LATER = at(NOW - timedelta(days=1)), at(NOW + timedelta(days=1))
STAGE: Final[Stage] = "train"


def partly_scheduled(
    other_created: str = EARLIER, other_profile: str = "cpu", other_message: str | None = None
) -> MemoryCluster:
    """A run of which one pod runs and no node can take the other, next to another run in this state."""
    cluster = training()
    lacks = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        "lastTransitionTime": at(cluster.now),
    }
    first = cluster.pod(STAGE, running(cluster), index=0)
    first["spec"] = {**first["spec"], "nodeName": "worker-1"}
    cluster.pod(STAGE, {}, index=1, conditions=[lacks])
    cluster.reconcile("FineTuneJob", JOB)
    other = deepcopy(cluster.objects["FineTuneJob", JOB])
    other["metadata"] |= {"name": "other", "uid": "other-uid", "creationTimestamp": other_created}
    other["status"]["resolved"] |= {"profile": other_profile}
    if other_message is not None:
        (reconciling,) = (each for each in other["status"]["conditions"] if each["type"] == "Reconciling")
        reconciling["message"] = other_message
    cluster.objects["FineTuneJob", "other"] = other
    return cluster


def advance(cluster: MemoryCluster, seconds: float) -> Manifest:
    """One pass over the run, this much later; its condition `Reconciling`."""
    cluster.now += timedelta(seconds=seconds)
    cluster.reconcile("FineTuneJob", JOB)
    found = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert found is not None
    return found


def retry_of(cluster: MemoryCluster) -> Manifest | None:
    found: Manifest | None = cluster.objects["FineTuneJob", JOB]["status"].get("retry")
    return found


def end_pods(cluster: MemoryCluster) -> None:
    for name in cluster.of("Pod"):
        cluster.remove("Pod", name)


def test_the_younger_run_gives_back_and_requests_its_devices_again_after_a_growing_wait() -> None:
    cluster = partly_scheduled()
    assert advance(cluster, 299)["reason"] == "Unschedulable"
    assert cluster.plan("FineTuneJob", JOB).requeue_after == 30
    assert "gave their devices back: an older run of several pods" in advance(cluster, 1)["message"]
    assert not cluster.has_stage_job(STAGE)
    assert [event.reason for event in cluster.events].count("DevicesGivenBack") == 1
    assert retry_of(cluster) == {
        "stage": STAGE,
        "failures": 1,
        "lastFailureAt": at(cluster.now),
        "gaveBack": True,
    }
    end_pods(cluster)
    assert "requests them again at" in advance(cluster, 50)["message"]
    assert not cluster.has_stage_job(STAGE)
    advance(cluster, 16)
    assert cluster.has_stage_job(STAGE)

    job = cluster.stage_job(STAGE)
    assert job["status"].keys() == {"startTime"}, "nothing of the earlier Job counts"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"other_created": LATER}, id="the other one is younger"),
        pytest.param({"other_profile": "a100"}, id="the other one needs other devices"),
        pytest.param({"other_profile": "elsewhere"}, id="the other one needs other nodes"),
        pytest.param({"other_profile": "spot"}, id="the other one needs other nodes by its train pods"),
        pytest.param(
            {"other_message": "1 of 2 pods is running; pod has unbound immediate PersistentVolumeClaims"},
            id="the other one waits for its claim",
        ),
        pytest.param(
            {"other_message": "0 of 2 pods are running; no node can take train pod 0 yet: Insufficient cpu"},
            id="the other one holds no devices",
        ),
    ],
)
def test_a_run_keeps_its_devices_if_no_older_run_competes_for_them(other: dict[str, str]) -> None:
    found = partly_scheduled(**other)
    found.objects["ComputeProfile", "cpu"]["spec"]["pods"] = [
        {"nodeSelector": {"pool": "here", "spot": "false"}}
    ]
    found.add(profile("a100", default=False, accelerator={"resource": "nvidia.com/gpu", "maxPerPod": 4}))
    found.add(profile("elsewhere", default=False, pods=[{"nodeSelector": {"pool": "elsewhere"}}]))
    spot = {"stages": ["train"], "nodeSelector": {"spot": "true"}}
    found.add(profile("spot", default=False, pods=[spot]))
    assert advance(found, 600)["reason"] == "Unschedulable"
    assert found.has_stage_job(STAGE)


def test_a_run_that_no_older_one_competes_with_gives_back_after_an_hour() -> None:
    cluster = partly_scheduled(other_created=LATER)
    assert advance(cluster, 3599)["reason"] == "Unschedulable"
    message = advance(cluster, 1)["message"]
    assert "no more than 1 of 2 pods had a node for an hour" in message
    assert "a smaller spec.compute.nodes" in message
    assert not cluster.has_stage_job(STAGE)
    end_pods(cluster)
    assert (
        "gave its devices back to other runs, and requests them again at" in advance(cluster, 50)["message"]
    )
    advance(cluster, 16)
    assert cluster.has_stage_job(STAGE)


def with_taint(value: str) -> list[Manifest]:
    return [{"key": "dedicated", "value": value, "effect": "NoSchedule"}]


def test_a_run_gives_back_late_to_one_that_tolerates_other_taints() -> None:
    found = partly_scheduled(other_profile="theirs")
    found.objects["ComputeProfile", "cpu"]["spec"]["pods"] = [{"tolerations": with_taint("ours")}]
    found.add(profile("theirs", default=False, pods=[{"tolerations": with_taint("theirs")}]))
    advance(found, 3599)
    assert found.has_stage_job(STAGE)
    advance(found, 1)
    assert not found.has_stage_job(STAGE), "both can use nodes without taints"


def test_a_run_in_a_queue_keeps_what_the_queue_admitted() -> None:
    cluster = partly_scheduled()
    cluster.stage_job(STAGE)["metadata"]["labels"][QUEUE_LABEL] = "gpus"
    advance(cluster, 600)
    assert cluster.has_stage_job(STAGE)


def test_a_run_whose_pods_all_wait_holds_nothing_to_give_back() -> None:
    cluster = partly_scheduled()
    for pod in cluster.of("Pod").values():
        pod["spec"].pop("nodeName", None)
    advance(cluster, 600)
    assert cluster.has_stage_job(STAGE)


def test_the_wait_doubles_each_time_and_a_failure_counts_from_one() -> None:
    cluster = partly_scheduled()
    before = {"stage": STAGE, "failures": 1, "lastFailureAt": at(cluster.now), "gaveBack": True}
    cluster.objects["FineTuneJob", JOB]["status"]["retry"] = before
    advance(cluster, 300)
    found = RetryStatus.model_validate(retry_of(cluster))
    assert (found.failures, found.gave_back) == (2, True)
    waits = (due_at(found, "uid") - found.last_failure_at).total_seconds()
    assert waits == pytest.approx(120, rel=0.1)
    failed = count_failure(found, STAGE, cluster.now)
    assert (failed.failures, failed.gave_back) == (1, None)
