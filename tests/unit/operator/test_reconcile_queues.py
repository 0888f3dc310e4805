# SPDX-License-Identifier: Apache-2.0
"""Queues of a ComputeProfile: which Jobs wait in them, and what an object does until they exist."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.engine.resources import WORKLOAD
from finetune_operator.manifests.endpoint import build_deployment
from finetune_operator.manifests.queueing import PRIORITY_LABEL, QUEUE_LABEL
from finetune_operator.manifests.revision import Revision, build_revision
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.run import chosen_queueing
from finetune_operator.reconcile.inputs.related_types import Needs
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.stage_table import STAGES
from tests.unit.operator import endpoints
from tests.unit.operator.evaluations import EVALUATION, evaluation, trained_cluster
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    DATASET,
    JOB,
    ROWS,
    claim,
    dataset,
    finetunejob,
    preflighted,
    prepared,
    profile,
)
from tests.unit.operator.runsteps import reached

QUEUES = {"cpu": "cpus", "train": "gpus", "evaluate": "gpus"}


def local_queue(name: str) -> Manifest:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": name}}


def preparing() -> MemoryCluster:
    return MemoryCluster(profile(kueue={"queues": QUEUES}), claim("artifacts"), dataset())


def with_own_rows() -> MemoryCluster:
    source = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    objects = profile(kueue={"queues": QUEUES}), claim("artifacts"), claim("models")
    return MemoryCluster(*objects, finetunejob(dataset=source))


def measuring() -> MemoryCluster:
    cluster = trained_cluster()
    cluster.objects["ComputeProfile", "cpu"]["spec"]["kueue"] = {"queues": QUEUES}
    cluster.add(evaluation())
    return cluster


OBJECTS: dict[str, tuple[Callable[[], MemoryCluster], str, str]] = {
    "Dataset": (preparing, DATASET, "cpu"),
    "FineTuneJob": (with_own_rows, JOB, "cpu"),
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
    assert message.startswith(
        f"LocalQueue {QUEUES[queue]} of kueue.queues.{queue} of ComputeProfile cpu does"
    )
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


@pytest.mark.parametrize("code", [403, 501])
def test_where_queues_cannot_be_read_kueue_alone_decides(kind: str, code: int) -> None:
    cluster, _, queue = made(kind, code)
    assert QUEUES[queue] in queues_of_jobs(cluster)


def test_a_job_with_a_queue_is_created_suspended_and_one_without_a_queue_is_not(kind: str) -> None:
    """Otherwise it would take devices without a quota where Kueue does not see it."""
    cluster, _, queue = made(kind, 403)
    assert QUEUES[queue] in queues_of_jobs(cluster)
    for job in cluster.of("Job").values():
        assert job["spec"].get("suspend", False) is (QUEUE_LABEL in job["metadata"]["labels"])


def needs(cluster: MemoryCluster) -> Needs:
    return KIND_ROWS["FineTuneJob"].needs(*cluster.snapshot("FineTuneJob", JOB))


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
    assert WORKLOAD not in needs(cluster), "most Jobs are admitted at once"
    cluster.now += timedelta(seconds=4)
    assert WORKLOAD in needs(cluster)
    cluster.settle()
    expected = ("Queued", "the train Job waits in LocalQueue gpus: 1 more needed")
    assert condition(cluster, "FineTuneJob", JOB) == expected


def test_jobs_that_free_resources_or_hold_up_a_verdict_have_no_queue() -> None:
    assert {stage for stage, row in STAGES.items() if not row.queued} == {"analyze", "cleanup", "collect"}


def choosing(kueue: Manifest, **compute: str) -> MemoryCluster:
    """A run with this choice, on a profile with queues for stages with devices."""
    shared = profile(kueue={"queues": {"train": "gpus", "evaluate": "gpus"}, **kueue})
    cluster = MemoryCluster(
        shared, claim("artifacts"), claim("models"), dataset(), finetunejob(compute=compute)
    )
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    if cluster.has_stage_job("preflight"):
        assert queueing_labels(cluster, "preflight") == {}, "it has no devices"
        cluster.succeed("preflight", preflighted(), after=5)
        cluster.settle()
    return cluster


def queueing_labels(cluster: MemoryCluster, stage: str) -> dict[str, str]:
    labels = cluster.stage_job(stage)["metadata"]["labels"]
    return {name: value for name, value in labels.items() if name.startswith("kueue")}


def test_a_run_has_the_queue_and_the_priority_of_its_profile() -> None:
    cluster = choosing({"workloadPriorityClasses": {"train": "batch"}})
    assert queueing_labels(cluster, "train") == {QUEUE_LABEL: "gpus", PRIORITY_LABEL: "batch"}


def test_a_run_may_choose_what_its_profile_allows() -> None:
    allows = {"allowedQueues": ["urgent"], "allowedWorkloadPriorityClasses": ["high"]}
    cluster = choosing(allows, queueName="urgent", workloadPriorityClass="high")
    assert queueing_labels(cluster, "train") == {QUEUE_LABEL: "urgent", PRIORITY_LABEL: "high"}


@pytest.mark.parametrize(
    ("compute", "reason", "message"),
    [
        (
            {"queueName": "vip"},
            "QueueNotAllowed",
            "spec.compute.queueName is vip, but ComputeProfile cpu allows gpus, urgent",
        ),
        (
            {"workloadPriorityClass": "vip"},
            "PriorityNotAllowed",
            "spec.compute.workloadPriorityClass is vip, but ComputeProfile cpu allows none",
        ),
    ],
)
def test_a_run_may_choose_nothing_else(compute: dict[str, str], reason: str, message: str) -> None:
    cluster = choosing({"allowedQueues": ["urgent"]}, **compute)
    found = condition(cluster, "FineTuneJob", JOB)
    assert found[0] == reason
    assert found[1].startswith(message)
    assert not cluster.has_stage_job("train")


def test_a_stage_with_a_profile_of_its_own_has_the_queue_of_that_profile() -> None:
    run = FineTuneJob.model_validate(
        finetunejob(compute={"queueName": "urgent"}, evaluation={"profile": "small", "metrics": ["loss"]})
    )
    assert chosen_queueing(run, "train").queue_name == "urgent"
    assert chosen_queueing(run, "evaluate").queue_name is None


def test_the_pods_of_an_endpoint_have_its_queue_and_another_queue_is_another_revision() -> None:
    def revision_of(**compute: str) -> Revision:
        shared = endpoints.profile(kueue={"queues": {"serve": "serving"}, "allowedQueues": ["other"]})
        return build_revision(endpoints.endpoint(compute=compute), ROWS, (), shared, "pvc://artifacts")

    own, other = revision_of(), revision_of(queueName="other")
    assert own.name != other.name
    deployment = build_deployment(endpoints.endpoint(), own, "trainer:1", "Always")
    for labels in (deployment["metadata"]["labels"], deployment["spec"]["template"]["metadata"]["labels"]):
        assert labels[QUEUE_LABEL] == "serving"
    assert QUEUE_LABEL not in deployment["spec"]["selector"]["matchLabels"]
