# SPDX-License-Identifier: Apache-2.0
"""Positions in queues: from a summary of Kueue v0.17, as text, and as messages of runs and endpoints."""

from datetime import timedelta

import pytest

from finetune_client.local.cluster import at
from finetune_operator.engine.resources import PENDING_WORKLOADS
from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.observe.admission import QueuePosition, slim_summary
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.platform.queues import admission_needs
from tests.unit.operator.endpoints import EndpointCluster, rolling, serving_pod
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import JOB
from tests.unit.operator.runsteps import reached

ITEM: Manifest = {
    "metadata": {
        "name": "job-routing-train-1a2b3-5d4f8",
        "namespace": "team",
        "creationTimestamp": "2030-01-02T03:00:00Z",
        "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "routing-train-1a2b3", "uid": "uid-1"}
        ],
    },
    "priority": 100,
    "localQueueName": "gpus",
    "positionInClusterQueue": 2,
    "positionInLocalQueue": 0,
}
SUMMARY: Manifest = {
    "kind": "PendingWorkloadsSummary",
    "apiVersion": "visibility.kueue.x-k8s.io/v1beta2",
    "metadata": {},
    "items": [ITEM],
}


def test_positions_are_found_by_the_uid_of_the_job_and_begin_with_1() -> None:
    assert slim_summary(SUMMARY)["positions"] == {"uid-1": (1, 3)}


def test_a_position_that_is_omitted_is_0() -> None:
    head = {key: value for key, value in ITEM.items() if key != "positionInClusterQueue"}
    assert slim_summary({**SUMMARY, "items": [head]})["positions"] == {"uid-1": (1, 1)}


def test_a_queue_of_the_same_name_in_another_namespace_is_another_queue() -> None:
    """As Kueue v0.17.0 answers for either of two LocalQueues `gpus` of one ClusterQueue."""
    ahead = {"name": "other", "namespace": "others", "ownerReferences": [{"uid": "uid-2"}]}
    items = [
        {**ITEM, "positionInLocalQueue": 1},
        {**ITEM, "metadata": ahead, "positionInLocalQueue": 0, "positionInClusterQueue": 1},
    ]
    positions = slim_summary({**SUMMARY, "items": items})["positions"]
    assert positions == {"uid-2": (1, 2), "uid-1": (1, 3)}


def test_a_queue_without_workloads_has_no_positions() -> None:
    assert slim_summary({**SUMMARY, "items": None})["positions"] == {}


@pytest.mark.parametrize(
    ("position", "text"),
    [
        ((1, 1), "at position 1 (1 in its ClusterQueue)"),
        ((10, 11), "at position 10 (11 or later in its ClusterQueue)"),
        ((20, 21), "at position 11 or later (21 or later in its ClusterQueue)"),
        ((200, 5000), "at position 101 or later (501 or later in its ClusterQueue)"),
    ],
)
def test_positions_near_the_head_are_exact(position: tuple[int, int], text: str) -> None:
    assert str(QueuePosition(*position)) == text


def test_the_admission_of_the_head_of_a_long_queue_changes_few_texts() -> None:
    moves = [(QueuePosition(place, place), QueuePosition(place - 1, place - 1)) for place in range(2, 1000)]
    assert sum(str(before) != str(after) for before, after in moves) == 15


def waiting_run(seconds: float) -> MemoryCluster:
    """A run whose train Job has waited in its queue for this long, at position 2."""
    cluster = reached("train")
    cluster.kueue = None
    job = cluster.stage_job("train")
    job["spec"]["suspend"] = True
    job["metadata"]["labels"][QUEUE_LABEL] = "gpus"
    job["metadata"]["creationTimestamp"] = at(cluster.now - timedelta(seconds=seconds))
    lacks = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "1 more needed"}
    metadata = {"name": "job-1", "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}}
    cluster.add({"kind": "Workload", "metadata": metadata, "status": {"conditions": [lacks]}})
    cluster.positions = {job["metadata"]["uid"]: QueuePosition(2, 12)}
    cluster.settle()
    return cluster


def test_a_run_that_waits_shows_its_position_and_the_reason() -> None:
    found = waiting_run(seconds=60).condition("FineTuneJob", JOB, "Reconciling")
    assert found is not None
    position = "at position 2 (11 or later in its ClusterQueue)"
    assert found["message"] == f"the train Job waits in LocalQueue gpus, {position}: 1 more needed"


def test_a_changed_position_changes_nothing_but_the_message() -> None:
    cluster = waiting_run(seconds=60)
    before = cluster.objects["FineTuneJob", JOB]["status"]
    cluster.positions = dict.fromkeys(cluster.positions, QueuePosition(1, 1))
    cluster.now += timedelta(seconds=60)
    cluster.settle()
    after = cluster.objects["FineTuneJob", JOB]["status"]
    (changed,) = (
        pair for pair in zip(before["conditions"], after["conditions"], strict=True) if pair[0] != pair[1]
    )
    assert "at position 1 (1 in its ClusterQueue)" in changed[1]["message"]
    assert {**changed[0], "message": ""} == {**changed[1], "message": ""}
    assert {**before, "conditions": ()} == {**after, "conditions": ()}


@pytest.mark.parametrize(("seconds", "queues"), [(3, None), (4, {"gpus"})])
def test_the_position_of_a_job_that_is_admitted_at_once_is_not_requested(
    seconds: float, queues: set[str] | None
) -> None:
    _, snapshot = waiting_run(seconds).snapshot("FineTuneJob", JOB)
    assert admission_needs(snapshot).get(PENDING_WORKLOADS) == queues


def gated_endpoint() -> tuple[EndpointCluster, str]:
    """An endpoint whose new revision waits in its queue; the pod's uid."""
    cluster, _, new = rolling()
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gates"}
    pod = serving_pod(new, conditions=[gated])
    pod["metadata"]["labels"][QUEUE_LABEL] = "serving"
    pod["metadata"]["uid"] = "pod-uid"
    pod["spec"] = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    cluster.put(pod)
    cluster.wait(40)
    return cluster, "pod-uid"


def test_an_endpoint_that_waits_shows_the_position_of_its_replica_and_looks_again() -> None:
    cluster, uid = gated_endpoint()
    assert admission_needs(cluster.snapshot())[PENDING_WORKLOADS] == {"serving"}
    cluster.cluster.positions = {uid: QueuePosition(1, 4)}
    plan = cluster.reconcile()
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "NoCapacityForSurge"
    assert (
        "waits in LocalQueue serving for admission, at position 1 (4 in its ClusterQueue) (kubectl" in message
    )
    assert plan.requeue_after == 10
