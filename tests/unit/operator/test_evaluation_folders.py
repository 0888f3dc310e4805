# SPDX-License-Identifier: Apache-2.0
"""What becomes of the folders of an Evaluation when it is deleted with `deletionPolicy: Delete`."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.api.labels import STAGE
from tests.unit.operator.evaluations import (
    EVALUATION,
    EVALUATION_UID,
    SECOND,
    entries,
    evaluated_cluster,
    evaluating,
    evaluation,
    measured,
    second_checkpoint,
    trained_cluster,
)
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT


def is_there(cluster: MemoryCluster) -> bool:
    return ("Evaluation", EVALUATION) in cluster.objects


def cleanups(cluster: MemoryCluster) -> list[str]:
    jobs = cluster.of("Job").values()
    return [job["metadata"]["name"] for job in jobs if job["metadata"]["labels"][STAGE] == "cleanup"]


def finalizers(cluster: MemoryCluster) -> Any:
    return cluster.objects["Evaluation", EVALUATION]["metadata"].get("finalizers", [])


def test_the_folder_of_a_checkpoint_goes_before_the_evaluation_and_its_scores_stay() -> None:
    cluster = evaluated_cluster(deletionPolicy="Delete")
    assert finalizers(cluster) == ["finetune.dev/cleanup"]
    before = entries(cluster)
    cluster.delete("Evaluation", EVALUATION)
    cluster.settle()

    config = cluster.config("cleanup")
    assert (config.run, config.artifact, config.store.uri) == (
        f"{EVALUATION_UID}-0",
        None,
        "pvc://artifacts",
    )
    assert is_there(cluster)
    cluster.end("cleanup", "")
    cluster.settle()

    assert not is_there(cluster)
    assert entries(cluster) == before


def test_by_default_the_folders_stay() -> None:
    cluster = evaluated_cluster()
    assert finalizers(cluster) == []
    cluster.delete("Evaluation", EVALUATION)
    cluster.settle()

    assert not is_there(cluster)
    assert not cleanups(cluster)


def test_the_pod_ends_before_the_folders_of_all_begun_checkpoints_are_removed() -> None:
    cluster = trained_cluster()
    second_checkpoint(cluster)
    cluster.add(evaluation(checkpoints=[CHECKPOINT, SECOND], deletionPolicy="Delete"))
    cluster.settle()
    cluster.succeed("evaluate", measured())
    cluster.settle()
    cluster.start("evaluate")
    cluster.delete("Checkpoint", SECOND)
    cluster.delete("Evaluation", EVALUATION)
    cluster.stage_job("evaluate")["metadata"]["deletionTimestamp"] = at(cluster.now)
    cluster.reconcile("Evaluation", EVALUATION)
    waits = cluster.condition("Evaluation", EVALUATION, "Reconciling")
    assert waits is not None
    assert "waiting for the Evaluation's pods to end" in waits["message"]
    assert not cleanups(cluster)

    cluster.remove("Job", cluster.stage_job("evaluate")["metadata"]["name"])
    cluster.reconcile("Evaluation", EVALUATION)

    assert len(cleanups(cluster)) == 2


def test_an_evaluation_that_never_began_goes_at_once() -> None:
    cluster = trained_cluster()
    cluster.add(evaluation(checkpoints=["later"], deletionPolicy="Delete"))
    cluster.settle()
    cluster.delete("Evaluation", EVALUATION)
    cluster.settle()

    assert not is_there(cluster)


def test_a_claim_that_is_gone_delays_nothing_and_a_store_that_fails_a_day() -> None:
    cluster = evaluating(deletionPolicy="Delete")
    cluster.remove("PersistentVolumeClaim", "artifacts")
    cluster.delete("Evaluation", EVALUATION)
    cluster.settle()
    assert not is_there(cluster)

    cluster = evaluated_cluster(deletionPolicy="Delete")
    cluster.delete("Evaluation", EVALUATION)
    cluster.settle()
    cluster.now += timedelta(hours=24, seconds=1)
    cluster.reconcile("Evaluation", EVALUATION)

    assert not is_there(cluster)
    assert "stays in the store" in cluster.events[-1].message


@pytest.mark.parametrize(("policy", "removed"), [("Delete", 2), ("Retain", 1)])
def test_the_answers_of_a_checkpoint_go_with_its_weights_unless_the_evaluation_retains_them(
    policy: str, removed: int
) -> None:
    cluster = evaluated_cluster(deletionPolicy=policy)
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.settle()

    assert len(cleanups(cluster)) == removed
    for name in cleanups(cluster):
        complete = {"type": "Complete", "status": "True", "lastTransitionTime": at(cluster.now)}
        cluster.objects["Job", name]["status"] = {"conditions": [complete]}
    cluster.settle()
    assert ("Checkpoint", CHECKPOINT) not in cluster.objects
