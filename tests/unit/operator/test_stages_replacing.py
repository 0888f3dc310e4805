# SPDX-License-Identifier: Apache-2.0
"""A Job whose pods cannot start is created again after a correction of its ComputeProfile or image."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.manifests.labels import PROFILE_VERSION
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
    cluster.change("ComputeProfile", "cpu", podTemplates=[{"nodeSelector": {"pool": "gpu"}}])
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
    del cluster.stage_job("train")["metadata"]["annotations"][PROFILE_VERSION]


@pytest.mark.parametrize("state", [started, failed_once, held_by_kueue, of_an_earlier_release])
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


def with_image(image: str, **spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(
        profile(images={"trainer": image}),
        claim("artifacts"),
        claim("wrong"),
        claim("models"),
        dataset(store={"uri": "pvc://artifacts"}),
        finetunejob(dataset={"inline": {"source": {"uri": "pvc://models/rows.jsonl"}}}, **spec),
    )
    cluster.remove("Dataset", DATASET)
    cluster.settle()
    return cluster


def test_a_run_takes_the_corrected_image_and_store_before_its_first_stage_has_started() -> None:
    cluster = with_image(WRONG)
    cluster.pod("prepare", **NO_IMAGE)
    assert waits(cluster) == "ImageUnavailable"

    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT}, store={"uri": "pvc://wrong"})
    cluster.settle()

    assert image_of(cluster, "prepare") == RIGHT
    resolved = cluster.job(JOB).status.resolved
    assert (resolved.trainer_image, resolved.store) == (RIGHT, "pvc://wrong")


def test_a_run_keeps_the_image_of_its_finished_stages() -> None:
    cluster = reached("train")
    before = image_of(cluster, "train")
    cluster.pod("train", **NO_IMAGE)

    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT})
    cluster.settle()

    assert image_of(cluster, "train") == before
    assert waits(cluster) == "Queued"


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
    cluster.change("ComputeProfile", "cpu", images={"trainer": WRONG}, trainerContract=2)
    cluster.add(evaluation())
    cluster.settle()
    cluster.pod("evaluate", **NO_IMAGE)
    assert waits(cluster, "Evaluation", EVALUATION) == "ImageUnavailable"

    cluster.change("ComputeProfile", "cpu", images={"trainer": RIGHT})
    cluster.settle()

    assert image_of(cluster, "evaluate") == RIGHT
    status = cluster.objects["Evaluation", EVALUATION]["status"]
    assert status["resolved"]["trainerImage"] == RIGHT
