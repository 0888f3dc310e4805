# SPDX-License-Identifier: Apache-2.0
"""Records that are deleted with a run or Dataset that has `deletionPolicy: Delete`, and those that stay."""

from typing import Any

import pytest

from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    JOB,
    VERSION,
    dataset,
    evaluated,
    finetunejob,
    prepared,
)
from tests.unit.operator.runsteps import delete_run, ended, reached

MANUAL = {"promotion": {"mode": "Manual"}}
OWN_VERSION = f"{JOB}-data-{'d' * 12}"


def is_going(cluster: MemoryCluster, kind: str, name: str) -> bool:
    return "deletionTimestamp" in cluster.objects[kind, name]["metadata"]


def without_run(**spec: Any) -> MemoryCluster:
    """A finished run that is being deleted; no other object has been reconciled since."""
    cluster = ended(deletionPolicy="Delete", **spec)
    delete_run(cluster)
    return cluster


def test_records_that_nobody_counts_on_go_with_the_run() -> None:
    cluster = without_run(**MANUAL)
    assert ("FineTuneJob", JOB) not in cluster.objects
    assert is_going(cluster, "Checkpoint", CHECKPOINT)
    assert f"deleted records: {CHECKPOINT}; kept: none" in [event.message for event in cluster.events]


def test_a_promoted_checkpoint_outlives_its_run() -> None:
    cluster = without_run()
    assert ("FineTuneJob", JOB) not in cluster.objects
    assert not is_going(cluster, "Checkpoint", CHECKPOINT)
    assert cluster.events[-1].message == f"deleted records: none; kept: {CHECKPOINT} (promoted)"


def test_a_checkpoint_that_was_promoted_and_then_rejected_goes() -> None:
    cluster = ended(deletionPolicy="Delete")
    cluster.change("Checkpoint", CHECKPOINT, approval={"state": "Rejected"})
    cluster.settle()
    delete_run(cluster)
    assert is_going(cluster, "Checkpoint", CHECKPOINT)


def test_a_checkpoint_that_an_endpoint_pins_outlives_its_run() -> None:
    cluster = ended(deletionPolicy="Delete", **MANUAL)
    cluster.add(pinning_endpoint())
    delete_run(cluster)
    assert not is_going(cluster, "Checkpoint", CHECKPOINT)
    assert "in use by InferenceDeployment desk" in cluster.events[-1].message


def pinning_endpoint() -> Manifest:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "desk"},
        "spec": {
            "baseModel": {"uri": "pvc://models/gemma"},
            "models": [{"name": "router", "pin": {"checkpoint": CHECKPOINT}}],
        },
    }


def test_a_record_that_was_set_to_retain_stays() -> None:
    cluster = ended(deletionPolicy="Delete", **MANUAL)
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Retain")
    cluster.settle()
    delete_run(cluster)
    assert ("FineTuneJob", JOB) not in cluster.objects
    assert not is_going(cluster, "Checkpoint", CHECKPOINT)


def test_a_run_with_retain_goes_at_once_and_leaves_everything() -> None:
    cluster = ended(**MANUAL)
    cluster.delete("FineTuneJob", JOB)
    assert ("FineTuneJob", JOB) not in cluster.objects
    assert not is_going(cluster, "Checkpoint", CHECKPOINT)


def test_rows_of_a_runs_own_go_with_it_even_in_the_middle_of_it() -> None:
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    cluster = MemoryCluster(*reached("train").of("ComputeProfile").values())
    for name in ("artifacts", "models"):
        cluster.add(reached("train").objects["PersistentVolumeClaim", name])
    cluster.add(finetunejob(dataset=own_rows, deletionPolicy="Delete"))
    cluster.settle()
    cluster.succeed("prepare", prepared(run=cluster.job(JOB).uid))
    cluster.settle()
    assert ("DatasetVersion", OWN_VERSION) in cluster.objects
    delete_run(cluster)
    assert is_going(cluster, "DatasetVersion", OWN_VERSION)


@pytest.mark.parametrize("in_use", [False, True], ids=["no run uses them", "a run uses them"])
def test_versions_go_with_their_dataset_unless_a_run_uses_them(in_use: bool) -> None:
    cluster = ended(dataset(deletionPolicy="Delete"))
    assert cluster.objects["DatasetVersion", VERSION]["metadata"]["finalizers"] == [FINALIZER]
    if in_use:
        later = finetunejob()
        later["metadata"] = {"name": "tickets-v2", "uid": "22222222-0000-4000-8000-000000000001"}
        cluster.add(later)
        cluster.settle()
    cluster.delete("Dataset", DATASET)
    cluster.reconcile("Dataset", DATASET)
    assert ("Dataset", DATASET) not in cluster.objects
    assert is_going(cluster, "DatasetVersion", VERSION) is not in_use


def test_in_a_namespace_that_goes_a_run_deletes_nothing_and_is_let_go() -> None:
    cluster = ended(deletionPolicy="Delete", **MANUAL)
    cluster.is_terminating = True
    cluster.delete("FineTuneJob", JOB)
    plan = cluster.reconcile("FineTuneJob", JOB)
    assert plan.delete == ()
    assert ("FineTuneJob", JOB) not in cluster.objects


def test_pruning_a_run_in_mid_evaluation_takes_its_unjudged_checkpoint_along() -> None:
    cluster = reached("evaluate")
    cluster.change("FineTuneJob", JOB, deletionPolicy="Delete")
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.settle()
    delete_run(cluster)
    assert is_going(cluster, "Checkpoint", CHECKPOINT)


def test_without_the_run_its_checkpoint_stays_promoted() -> None:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    cluster.remove("FineTuneJob", JOB)
    cluster.settle()
    assert cluster.states("Checkpoint", CHECKPOINT) == {"Promoted": "Promoted"}
