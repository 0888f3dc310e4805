# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of `checkpoints.keepSteps`: recorded like others, and removed only as records."""

from typing import Any

from finetune_operator.manifests.labels import checkpoint_name
from finetune_operator.plan import Manifest
from finetune_trainer.contract.results import CheckpointResult, StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    HYPERPARAMETERS,
    JOB,
    JOB_UID,
    dataset,
    digest,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    trained,
)

KEPT: dict[str, Any] = {"checkpoints": {"keep": 6, "keepSteps": [3, 5]}}
BEST_STEP, FINAL_STEP = 20, 40
STEPS = (3, 5, 12, 14, 16, 18, BEST_STEP, 24, 28, FINAL_STEP)


def checkpoint(step: int) -> CheckpointResult:
    return CheckpointResult(
        digest=digest("123456789a"[STEPS.index(step)]),
        type="Adapter",
        step=step,
        epoch=step / 10,
        train_loss=1,
        validation_loss=1.2 if step == BEST_STEP else None,
        best=step == BEST_STEP,
        final=step == FINAL_STEP,
    )


def name_of(step: int) -> str:
    return checkpoint_name(JOB, JOB_UID, step, checkpoint(step).digest)


def result() -> StageResult:
    whole = trained()
    assert whole.train is not None
    kept = whole.train.model_copy(update={"checkpoints": tuple(map(checkpoint, STEPS))})
    return whole.model_copy(update={"train": kept})


def trained_run(**spec: Any) -> MemoryCluster:
    """A run that was trained and left ten checkpoints."""
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob(**KEPT, **spec))
    cluster.settle()
    for stage, ended in (("prepare", prepared()), ("preflight", preflighted()), ("train", result())):
        cluster.succeed(stage, ended, after=5)
        cluster.settle()
    return cluster


def judged_run(**spec: Any) -> MemoryCluster:
    cluster = trained_run(deletionPolicy="Delete", **spec)
    cluster.succeed("evaluate", evaluated(), after=5)
    cluster.settle()
    return cluster


def going(cluster: MemoryCluster) -> set[str]:
    return {
        name for name, record in cluster.of("Checkpoint").items() if "deletionTimestamp" in record["metadata"]
    }


def pinned(name: str) -> Manifest:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "desk"},
        "spec": {
            "baseModel": {"uri": "pvc://models/gemma"},
            "models": [{"name": "router", "pin": {"checkpoint": name}}],
            "compute": {"profile": "missing"},
        },
        "status": {"observedGeneration": -1},
    }


def served(name: str, digest_: str) -> Manifest:
    endpoint = pinned(name)
    endpoint["spec"]["models"] = [{"name": "router", "follow": {"modelLine": "others"}}]
    endpoint["status"] = {"models": [{"name": "router", "checkpoint": name, "digest": digest_}]}
    return endpoint


def test_the_config_lists_the_steps_to_keep() -> None:
    cluster = trained_run()

    assert (cluster.config("train").keep, cluster.config("train").keep_steps) == (6, (3, 5))
    assert cluster.config("preflight").keep_steps == (3, 5)


def test_each_becomes_a_record_with_its_lineage() -> None:
    cluster = trained_run()

    records = cluster.of("Checkpoint")
    assert set(records) == {name_of(step) for step in STEPS}
    lineages = [record["spec"]["lineage"] for record in records.values()]
    assert all(lineage == lineages[0] for lineage in lineages)
    assert lineages[0]["job"] == {"name": JOB, "uid": JOB_UID}
    assert lineages[0]["hyperparameters"]["totalSteps"] == HYPERPARAMETERS.total_steps
    assert [summary.step for summary in cluster.job(JOB).status.checkpoints] == list(STEPS)


def test_the_best_one_is_judged_and_promoted() -> None:
    cluster = judged_run()

    assert cluster.config("evaluate").checkpoint == checkpoint(BEST_STEP).digest
    promoted = {
        name for name, record in cluster.of("Checkpoint").items() if record["status"].get("promotedAt")
    }
    assert promoted == {name_of(BEST_STEP)}


def test_the_promoted_one_outlives_its_run_and_the_others_go() -> None:
    cluster = judged_run()
    cluster.delete("FineTuneJob", JOB)
    cluster.reconcile("FineTuneJob", JOB)

    assert going(cluster) == {name_of(step) for step in STEPS if step != BEST_STEP}


def test_one_that_an_endpoint_pins_or_serves_outlives_its_run() -> None:
    for user in (pinned(name_of(14)), served(name_of(14), checkpoint(14).digest)):
        cluster = judged_run()
        cluster.add(user)
        cluster.delete("FineTuneJob", JOB)
        cluster.reconcile("FineTuneJob", JOB)

        assert going(cluster) == {name_of(step) for step in STEPS if step not in (14, BEST_STEP)}


def test_the_weights_of_one_go_only_when_its_own_record_does() -> None:
    cluster = judged_run()
    assert not cluster.has_stage_job("cleanup")

    cluster.delete("Checkpoint", name_of(14))
    cluster.reconcile("Checkpoint", name_of(14))

    assert cluster.config("cleanup").artifact.digest == checkpoint(14).digest
    assert going(cluster) == {name_of(14)}


def test_weights_that_an_endpoint_pins_stay_although_their_record_was_deleted() -> None:
    cluster = judged_run()
    cluster.add(pinned(name_of(14)))
    cluster.delete("Checkpoint", name_of(14))
    cluster.reconcile("Checkpoint", name_of(14))

    assert cluster.states("Checkpoint", name_of(14))["Reconciling"] == "InUse"
    assert not cluster.has_stage_job("cleanup")
