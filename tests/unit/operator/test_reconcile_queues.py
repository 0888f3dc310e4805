"""Queues of a ComputeProfile: which Jobs wait in them, and what an object does until they exist."""

from collections.abc import Callable

import pytest

from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.plan import Manifest
from finetune_operator.stagetable import STAGES
from tests.unit.operator.evaluations import EVALUATION, evaluation, trained_cluster
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import DATASET, JOB, claim, dataset, finetunejob, profile
from tests.unit.operator.runsteps import reached

QUEUES = {"prepare": "cpus", "train": "gpus", "evaluate": "gpus"}


def local_queue(name: str) -> Manifest:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": name}}


def preparing() -> MemoryCluster:
    return MemoryCluster(profile(queues=QUEUES), claim("artifacts"), dataset())


def inline() -> MemoryCluster:
    source = {"inline": {"source": {"uri": "configmap://tickets/rows.jsonl"}}}
    objects = profile(queues=QUEUES), claim("artifacts"), claim("models")
    return MemoryCluster(*objects, finetunejob(dataset=source))


def measuring() -> MemoryCluster:
    cluster = trained_cluster()
    cluster.objects["ComputeProfile", "cpu"]["spec"]["queues"] = QUEUES
    cluster.add(evaluation())
    return cluster


OBJECTS: dict[str, tuple[Callable[[], MemoryCluster], str, str]] = {
    "Dataset": (preparing, DATASET, "prepare"),
    "FineTuneJob": (inline, JOB, "prepare"),
    "Evaluation": (measuring, EVALUATION, "evaluate"),
}


def condition(cluster: MemoryCluster, kind: str, name: str) -> tuple[str, str]:
    found = cluster.condition(kind, name, "Reconciling")
    assert found is not None
    return found["reason"], found["message"]


@pytest.fixture(params=OBJECTS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def made(kind: str, kueue: int | None) -> tuple[MemoryCluster, str, str]:
    """A settled cluster with an object of the kind; the object's name, and the queue of its first Job."""
    make, name, queue = OBJECTS[kind]
    cluster = make()
    cluster.kueue = kueue
    cluster.settle()
    return cluster, name, queue


def queues_of_jobs(cluster: MemoryCluster) -> set[str | None]:
    return {job["metadata"]["labels"].get(QUEUE_LABEL) for job in cluster.of("Job").values()}


def test_no_job_is_made_before_its_queue_exists(kind: str) -> None:
    cluster, name, queue = made(kind, None)
    reason, message = condition(cluster, kind, name)
    assert reason == "QueueNotFound"
    assert message.startswith(f"LocalQueue {QUEUES[queue]} of spec.queues.{queue} of ComputeProfile cpu does")
    assert queues_of_jobs(cluster) <= {None}
    for existing in ("cpus", "gpus"):
        cluster.add(local_queue(existing))
    cluster.settle()
    assert QUEUES[queue] in queues_of_jobs(cluster)


def test_where_kueue_is_not_installed_no_job_starts_without_its_quota(kind: str) -> None:
    cluster, name, _ = made(kind, 404)
    reason, message = condition(cluster, kind, name)
    assert reason == "KueueNotInstalled"
    assert "localqueues are not installed: install Kueue" in message


def test_without_the_right_to_read_queues_kueue_alone_decides(kind: str) -> None:
    cluster, _, queue = made(kind, 403)
    assert QUEUES[queue] in queues_of_jobs(cluster)


def test_a_suspended_job_shows_the_reason_of_its_workload() -> None:
    cluster = reached("train")
    cluster.kueue = None
    job = cluster.stage_job("train")
    job["spec"]["suspend"] = True
    job["metadata"]["labels"][QUEUE_LABEL] = "gpus"
    lacks = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "1 more needed"}
    metadata = {"name": "job-1", "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}}
    cluster.add({"kind": "Workload", "metadata": metadata, "status": {"conditions": [lacks]}})
    cluster.settle()
    expected = ("Queued", "the train Job waits in LocalQueue gpus: 1 more needed")
    assert condition(cluster, "FineTuneJob", JOB) == expected


def test_jobs_that_free_resources_or_hold_up_a_verdict_have_no_queue() -> None:
    assert {stage for stage, row in STAGES.items() if not row.queued} == {"analyze", "cleanup", "collect"}
