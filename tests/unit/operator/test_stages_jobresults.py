# SPDX-License-Identifier: Apache-2.0
"""Whose result counts: that of a pod that the Job controller made for a Job that the operator made."""

from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.manifests.labels import CONFIG_DIGEST, NONCE
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.stages.jobs import JOB_UID
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    JOB,
    dataset,
    digest,
    finetunejob,
    prepared,
    prerequisites,
    trained,
)
from tests.unit.operator.runsteps import RESULTS


def answer(cluster: MemoryCluster, stage: str, result: StageResult) -> StageResult:
    return cluster.config(stage).bind(result)  # type: ignore[no-any-return]


def training(*profiles: Manifest) -> MemoryCluster:
    """A run whose train Job exists."""
    around = prerequisites()
    objects = (*profiles, *around[1:]) if profiles else around
    cluster = MemoryCluster(*objects, dataset(), finetunejob())
    cluster.settle()
    for stage, result in (("prepare", prepared()), ("preflight", RESULTS["preflight"]())):
        cluster.succeed(stage, answer(cluster, stage, result), after=5)
        cluster.settle()
    return cluster


def hand_made(cluster: MemoryCluster, message: str, **metadata: Any) -> None:
    """A user's pod that succeeded and has the labels of the train Job."""
    job = cluster.stage_job("train")
    owner = {key: job["metadata"][key] for key in ("name", "uid")} | {"kind": "Job", "controller": True}
    now = at(cluster.now)
    terminated = {"exitCode": 0, "startedAt": now, "finishedAt": now, "message": message}
    labels = {**job["spec"]["template"]["metadata"]["labels"], JOB_UID: metadata.pop("job_uid", "")}
    cluster.add(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "hand-made", "labels": labels, "ownerReferences": [owner | metadata]},
            "spec": job["spec"]["template"]["spec"],
            "status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": terminated}}]},
        }
    )
    cluster.end_job("train", "Complete")
    cluster.settle()


def is_trained(cluster: MemoryCluster) -> bool:
    return CHECKPOINT in cluster.of("Checkpoint")


def test_a_result_that_answers_its_job_counts() -> None:
    cluster = training()
    job = cluster.stage_job("train")["metadata"]["annotations"]
    assert job[NONCE] == cluster.config("train").nonce
    cluster.succeed("train", answer(cluster, "train", trained()))
    cluster.settle()
    assert is_trained(cluster)


def test_a_hand_made_pod_without_the_job_controllers_label_counts_for_nothing() -> None:
    cluster = training()
    hand_made(cluster, answer(cluster, "train", trained()).to_json())
    assert not is_trained(cluster)


def test_a_hand_made_pod_that_does_not_know_the_nonce_counts_for_nothing() -> None:
    cluster = training()
    hand_made(cluster, trained().to_json(), job_uid=cluster.stage_job("train")["metadata"]["uid"])
    assert not is_trained(cluster)


def test_a_result_of_another_config_counts_for_nothing() -> None:
    cluster = training()
    other = cluster.config("train").model_copy(update={"keep": 5})
    assert other.nonce is not None
    cluster.end("train", other.bind(trained()).to_json())
    cluster.settle()
    assert not is_trained(cluster)


def test_a_hand_made_job_blocks_the_run_until_it_is_gone() -> None:
    cluster = training()
    job = cluster.stage_job("train")
    for mark in (NONCE, CONFIG_DIGEST):
        del job["metadata"]["annotations"][mark]
    cluster.end("train", trained().to_json())
    cluster.settle()

    state = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert state is not None
    assert state["reason"] == "NameConflict"
    assert "but the operator did not create it" in state["message"]
    assert not is_trained(cluster)

    cluster.remove("Job", job["metadata"]["name"])
    cluster.settle()
    assert NONCE in cluster.stage_job("train")["metadata"]["annotations"]


def test_a_result_from_the_store_is_bound_to_the_job_that_read_it() -> None:
    cluster = training()
    stored = answer(cluster, "train", trained())
    cluster.end_job("train", "Complete")
    cluster.settle()
    cluster.now = cluster.now.replace(minute=cluster.now.minute + 1)
    cluster.settle()
    assert cluster.has_stage_job("collect")
    forged = cluster.pod("collect", {"terminated": {"exitCode": 0, "message": stored.to_json()}})
    cluster.end_job("collect", "Complete")
    cluster.settle()
    assert not is_trained(cluster)
    right = answer(cluster, "collect", stored).to_json()
    forged["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = right
    cluster.settle()
    assert is_trained(cluster)


def preparing(*profiles: Manifest, **spec: Any) -> MemoryCluster:
    """A Dataset whose first prepare Job exists."""
    around = prerequisites()
    objects = (*profiles, *around[1:]) if profiles else around
    cluster = MemoryCluster(*objects, dataset(**spec))
    cluster.settle()
    return cluster


def without_marks(cluster: MemoryCluster, stage: str = "prepare") -> None:
    """The stage's Job becomes one that a user created."""
    for mark in (NONCE, CONFIG_DIGEST):
        cluster.stage_job(stage)["metadata"]["annotations"].pop(mark, None)


def refusal(cluster: MemoryCluster, type_: str = "Reconciling") -> str:
    state = cluster.condition("Dataset", DATASET, type_)
    return "" if state is None else state["reason"]


def looks_again(cluster: MemoryCluster) -> None:
    cluster.annotate("Dataset", DATASET, refresh_requested="again")
    cluster.settle()


def test_a_hand_made_job_blocks_a_dataset_until_it_is_gone() -> None:
    cluster = preparing()
    without_marks(cluster)
    cluster.end("prepare", prepared().to_json())
    cluster.settle()
    assert refusal(cluster) == "NameConflict"
    assert not cluster.of("DatasetVersion")

    cluster.remove("Job", cluster.stage_job("prepare")["metadata"]["name"])
    cluster.settle()
    cluster.succeed("prepare", answer(cluster, "prepare", prepared()))
    cluster.settle()
    assert cluster.of("DatasetVersion")


@pytest.mark.parametrize("kind", ["Dataset", "FineTuneJob"])
def test_a_job_that_existed_before_the_operator_created_its_own_is_foreign(kind: str) -> None:
    cluster = MemoryCluster(*prerequisites(), dataset())
    if kind == "FineTuneJob":
        cluster.settle()
        cluster.succeed("prepare", answer(cluster, "prepare", prepared()))
        cluster.settle()
        cluster.add(finetunejob())
    name = DATASET if kind == "Dataset" else JOB
    before = set(cluster.of("Job"))
    cluster.carry_out(kind, name, cluster.plan(kind, name), crash_before_status=True)
    (made,) = set(cluster.of("Job")) - before
    stage = cluster.objects["Job", made]["metadata"]["labels"]["finetune.dev/stage"]
    without_marks(cluster, stage)
    cluster.reconcile(kind, name)
    state = cluster.condition(kind, name, "Reconciling")
    assert state is not None
    assert state["reason"] == "NameConflict"


def test_a_hand_made_job_does_not_answer_another_look_at_the_source() -> None:
    cluster = preparing()
    cluster.succeed("prepare", answer(cluster, "prepare", prepared()))
    cluster.settle()
    first = set(cluster.of("DatasetVersion"))
    looks_again(cluster)
    without_marks(cluster)
    cluster.end("prepare", prepared(run=cluster.config("prepare").run, dataset=digest("e")).to_json())
    cluster.settle()
    assert refusal(cluster, "Refreshed") == "NameConflict"
    assert set(cluster.of("DatasetVersion")) == first
