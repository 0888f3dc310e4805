# SPDX-License-Identifier: Apache-2.0
"""A Job whose pods cannot start is created again after a correction of its ComputeProfile or image."""

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.manifests.labels import TEMPLATE_DIGEST
from finetune_trainer.contract.results import Progress
from tests.unit.operator.evaluations import EVALUATION, evaluation, trained_cluster
from tests.unit.operator.memorycluster import FACTS, MemoryCluster
from tests.unit.operator.runobjects import DATASET, JOB, claim, dataset, finetunejob, profile
from tests.unit.operator.runsteps import reached

Pod = dict[str, Any]
NO_NODE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
}
UNSCHEDULABLE: Pod = {"state": {}, "conditions": [NO_NODE]}
NO_IMAGE: Pod = {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
RIGHT, WRONG = "registry.example/trainer:2", "registry.example/trainer:nosuch"


def uid_of(cluster: MemoryCluster, stage: str) -> str:
    uid: str = cluster.stage_job(stage)["metadata"]["uid"]
    return uid


def image_of(cluster: MemoryCluster, stage: str) -> str:
    image: str = cluster.stage_job(stage)["spec"]["template"]["spec"]["containers"][0]["image"]
    return image


def waits(cluster: MemoryCluster, kind: str = "FineTuneJob", name: str = JOB) -> str:
    """Reason of the condition after the passes over all objects."""
    cluster.settle()
    found = cluster.condition(kind, name, "Reconciling")
    assert found is not None
    return str(found["reason"])


def correct(cluster: MemoryCluster) -> None:
    cluster.change("ComputeProfile", "cpu", pods=[{"nodeSelector": {"pool": "gpu"}}])
    cluster.settle()


@pytest.mark.parametrize("stage", ["preflight", "train", "evaluate"])
def test_a_corrected_profile_reaches_a_job_that_no_node_takes(stage: str) -> None:
    cluster = reached(stage)
    before = uid_of(cluster, stage)
    cluster.pod(stage, **UNSCHEDULABLE)
    assert waits(cluster) == "Unschedulable"
    assert uid_of(cluster, stage) == before

    correct(cluster)

    after = uid_of(cluster, stage)
    assert after != before
    assert cluster.stage_job(stage)["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}
    cluster.pod(stage, **UNSCHEDULABLE)
    assert waits(cluster) == "Unschedulable"
    assert uid_of(cluster, stage) == after


def test_the_pods_of_a_dataset_follow_its_profile() -> None:
    cluster = MemoryCluster(profile(), claim("artifacts"), dataset())
    cluster.settle()
    before = uid_of(cluster, "prepare")
    cluster.now += timedelta(seconds=61)
    assert waits(cluster, "Dataset", DATASET) == "PodNotStarting"

    correct(cluster)

    assert uid_of(cluster, "prepare") != before


def started(cluster: MemoryCluster) -> None:
    cluster.start("train")


def failed_once(cluster: MemoryCluster) -> None:
    cluster.stage_job("train")["status"] = {"failed": 1}


def held_by_kueue(cluster: MemoryCluster) -> None:
    cluster.stage_job("train")["spec"]["suspend"] = True


def of_an_earlier_release(cluster: MemoryCluster) -> None:
    del cluster.stage_job("train")["metadata"]["annotations"][TEMPLATE_DIGEST]


def evicted(cluster: MemoryCluster) -> None:
    """A pod has run, and is gone; its successor has no node."""
    cluster.start("train")
    cluster.report("train", Progress(step=5, total_steps=10))
    cluster.settle()
    cluster.remove("Pod", cluster.pod("train", {})["metadata"]["name"])
    cluster.pod("train", which="next", **UNSCHEDULABLE)


@pytest.mark.parametrize("state", [started, failed_once, held_by_kueue, of_an_earlier_release, evicted])
def test_other_jobs_stay_when_the_profile_changes(state: Any) -> None:
    cluster = reached("train")
    cluster.pod("train", **UNSCHEDULABLE)
    state(cluster)
    before = uid_of(cluster, "train")

    correct(cluster)

    assert uid_of(cluster, "train") == before


def test_a_job_whose_pod_is_only_being_created_stays() -> None:
    cluster = reached("train")
    before = uid_of(cluster, "train")
    correct(cluster)
    assert uid_of(cluster, "train") == before


WRONG_STORE = {"uri": "pvc://wrong", "accessMode": "ReadWriteOnce"}
FOR_OTHER_STAGES = [{"stages": ["serve"], "nodeSelector": {"pool": "gpu"}}]


@pytest.mark.parametrize(
    "edit",
    [
        {"cost": {"pricePerDeviceHour": 2.0, "currency": "EUR"}},
        {"cost": {"budget": {"period": "Day", "deviceHoursPerNamespace": 100}}},
        {"limits": {"runSeconds": 3600}},
        {"namespaces": {"names": ["team"]}},
        {"images": {"trainer": RIGHT}},
        {"pods": FOR_OTHER_STAGES},
        {"pods": []},
    ],
)
def test_an_edit_that_does_not_change_the_pods_replaces_no_job(edit: dict[str, Any]) -> None:
    cluster = reached("preflight")
    cluster.pod("preflight", **UNSCHEDULABLE)
    before = uid_of(cluster, "preflight")

    cluster.change("ComputeProfile", "cpu", **edit)

    assert waits(cluster) == "Unschedulable"
    assert uid_of(cluster, "preflight") == before


def test_a_profile_that_is_created_again_with_the_same_spec_replaces_no_job() -> None:
    cluster = reached("train")
    cluster.pod("train", **UNSCHEDULABLE)
    before = uid_of(cluster, "train")
    cluster.remove("ComputeProfile", "cpu")
    cluster.settle()
    cluster.add(profile())
    cluster.settle()
    assert uid_of(cluster, "train") == before


@pytest.mark.parametrize("state", [UNSCHEDULABLE, NO_IMAGE])
def test_an_image_that_admission_changed_in_the_pod_replaces_no_job(state: Pod) -> None:
    cluster = reached("preflight")
    pod = cluster.pod("preflight", **state)
    pod["spec"] = deepcopy(pod["spec"])
    pod["spec"]["containers"][0]["image"] = f"mirror.example/trainer@sha256:{'0' * 64}"
    before = uid_of(cluster, "preflight")
    cluster.settle()
    assert uid_of(cluster, "preflight") == before


def test_an_upgrade_replaces_no_job_that_waits_for_devices() -> None:
    cluster = reached("preflight")
    cluster.pod("preflight", **UNSCHEDULABLE)
    before = uid_of(cluster, "preflight")
    cluster.facts = replace(FACTS, trainer_image=RIGHT)
    cluster.settle()
    assert uid_of(cluster, "preflight") == before


@pytest.mark.parametrize(
    "refusal",
    [
        {"namespaces": {"names": ["other"]}},
        {"cost": {"budget": {"period": "Day", "deviceHoursPerNamespace": 1}}},
    ],
)
def test_a_job_stays_while_another_one_could_not_be_created(refusal: dict[str, Any]) -> None:
    cluster = reached("train")
    cluster.pod("train", **UNSCHEDULABLE)
    before = uid_of(cluster, "train")
    cluster.objects["ComputeProfile", "cpu"]["status"]["budget"] = {
        "period": "Day",
        "since": "2030-01-02T00:00:00Z",
        "resetsAt": "2030-01-03T00:00:00Z",
        "usage": [{"namespace": "team", "countedUntil": at(cluster.now), "deviceSeconds": 7200}],
    }

    cluster.change("ComputeProfile", "cpu", pods=[{"nodeSelector": {"pool": "gpu"}}], **refusal)
    cluster.settle()

    assert uid_of(cluster, "train") == before


def test_the_job_of_a_dataset_stays_while_its_profile_cannot_be_used() -> None:
    own = profile(images={"trainer": RIGHT})
    cluster = MemoryCluster(own, claim("artifacts"), dataset())
    cluster.settle()
    before = uid_of(cluster, "prepare")
    cluster.pod("prepare", **NO_IMAGE)
    cluster.settle()
    cluster.add(profile("second"))
    cluster.settle()
    assert uid_of(cluster, "prepare") == before


def test_a_job_that_is_being_deleted_is_not_taken_for_one_of_somebody_else() -> None:
    cluster = MemoryCluster(
        profile(images={"trainer": WRONG}),
        *(claim("artifacts"), claim("models")),
        finetunejob(dataset={"source": {"uri": "pvc://models/rows.jsonl"}}),
    )
    cluster.settle()
    job = cluster.stage_job("prepare")
    job["metadata"]["finalizers"] = ["foregroundDeletion"]
    cluster.pod("prepare", **NO_IMAGE)
    assert waits(cluster) == "ImageUnavailable"

    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT})

    assert waits(cluster) == "Queued"
    assert "deletionTimestamp" in job["metadata"]
    cluster.remove("Job", job["metadata"]["name"])
    cluster.settle()
    assert image_of(cluster, "prepare") == RIGHT


def with_image(image: str, **spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(
        profile(images={"trainer": image}),
        claim("artifacts"),
        claim("wrong"),
        claim("models"),
        dataset(store={"uri": "pvc://artifacts"}),
        finetunejob(dataset={"source": {"uri": "pvc://models/rows.jsonl"}}, **spec),
    )
    cluster.remove("Dataset", DATASET)
    cluster.settle()
    return cluster


def correct_image_and_store(cluster: MemoryCluster) -> None:
    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT}, store=WRONG_STORE)


def test_a_run_takes_the_corrected_image_and_store_before_its_first_stage_has_started() -> None:
    cluster = with_image(WRONG)
    cluster.pod("prepare", **NO_IMAGE)
    assert waits(cluster) == "ImageUnavailable"

    correct_image_and_store(cluster)
    cluster.settle()

    assert image_of(cluster, "prepare") == RIGHT
    resolved = cluster.job(JOB).status.resolved
    assert (resolved.trainer_image, resolved.store) == (RIGHT, "pvc://wrong")


def test_the_corrected_store_is_not_lost_with_the_write_of_the_status() -> None:
    cluster = with_image(RIGHT)
    cluster.pod("prepare", **UNSCHEDULABLE)
    assert waits(cluster) == "Unschedulable"
    cluster.change("ComputeProfile", "cpu", store=WRONG_STORE)

    cluster.carry_out("FineTuneJob", JOB, cluster.plan("FineTuneJob", JOB), crash_before_status=True)
    cluster.settle()
    assert cluster.config("prepare").store.uri == "pvc://artifacts"
    cluster.pod("prepare", **UNSCHEDULABLE)
    cluster.settle()

    assert cluster.config("prepare").store.uri == "pvc://wrong"
    assert cluster.job(JOB).status.resolved.store == "pvc://wrong"


def test_a_run_whose_first_pod_has_run_and_is_gone_keeps_its_store() -> None:
    cluster = with_image(WRONG)
    cluster.start("prepare")
    cluster.settle()
    before = uid_of(cluster, "prepare")
    cluster.remove("Pod", cluster.pod("prepare", {})["metadata"]["name"])
    cluster.pod("prepare", which="next", **NO_IMAGE)
    cluster.settle()

    correct_image_and_store(cluster)
    cluster.settle()

    assert uid_of(cluster, "prepare") == before
    assert cluster.job(JOB).status.resolved.store == "pvc://artifacts"


def test_a_run_keeps_the_image_of_its_finished_stages() -> None:
    cluster = reached("train")
    before, job = image_of(cluster, "train"), uid_of(cluster, "train")
    cluster.pod("train", **NO_IMAGE)

    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT})

    assert waits(cluster) == "ImageUnavailable"
    assert (image_of(cluster, "train"), uid_of(cluster, "train")) == (before, job)


def test_an_upgrade_of_the_operator_corrects_its_image() -> None:
    cluster = reached("preflight")
    cluster.pod("preflight", **NO_IMAGE)
    assert waits(cluster) == "ImageUnavailable"

    cluster.facts = replace(FACTS, trainer_image=RIGHT)
    cluster.settle()

    assert image_of(cluster, "preflight") == RIGHT
    assert cluster.job(JOB).status.resolved.trainer_image == RIGHT


def test_an_evaluation_takes_the_corrected_image() -> None:
    cluster = trained_cluster()
    cluster.change("ComputeProfile", "cpu", images={"trainer": WRONG})
    cluster.add(evaluation())
    cluster.settle()
    cluster.pod("evaluate", **NO_IMAGE)
    assert waits(cluster, "Evaluation", EVALUATION) == "ImageUnavailable"

    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT})
    cluster.settle()

    assert image_of(cluster, "evaluate") == RIGHT
    status = cluster.objects["Evaluation", EVALUATION]["status"]
    assert status["resolved"]["trainerImage"] == RIGHT
