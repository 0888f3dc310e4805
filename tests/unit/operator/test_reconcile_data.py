# SPDX-License-Identifier: Apache-2.0
"""Data of a run: a Dataset's version, a named one, or rows of the run's own."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    DATASET,
    DATASET_UID,
    JOB,
    JOB_UID,
    VERSION,
    claim,
    dataset,
    failed,
    finetunejob,
    prepared,
    profile,
)


def cluster_of(*objects: Manifest, **spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(*objects, dataset(store={"uri": "pvc://artifacts"}), finetunejob(**spec))
    cluster.settle()
    return cluster


def with_claims(*objects: Manifest) -> tuple[Manifest, ...]:
    return (*objects, claim("artifacts", "ReadWriteMany"), claim("models"))


def waits_for(cluster: MemoryCluster) -> tuple[str, str]:
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    return condition["reason"], condition["message"]


def test_a_run_waits_for_its_dataset_and_starts_when_it_is_ready() -> None:
    cluster = MemoryCluster(*with_claims(profile()), finetunejob())
    assert waits_for(cluster) == (
        "DatasetNotFound",
        "Dataset tickets does not exist in namespace team: create it",
    )
    cluster.add(dataset())
    assert waits_for(cluster) == ("WaitingForDataset", "waiting for Dataset tickets to be prepared")
    cluster.succeed("prepare", prepared())
    assert waits_for(cluster)[0] == "Queued"


def test_a_run_repeats_why_its_dataset_failed() -> None:
    cluster = cluster_of(*with_claims(profile()))
    cluster.end("prepare", failed("prepare", "InvalidData", "3 rows", run=f"{DATASET_UID}-1").to_json(), 11)
    assert waits_for(cluster) == ("DatasetFailed", "Dataset tickets failed with InvalidData: 3 rows")


def test_a_run_whose_dataset_is_blocked_is_blocked_too_and_repeats_the_reason() -> None:
    cluster = cluster_of(*with_claims(profile()))
    away = failed("prepare", "SourceUnavailable", "status 503", run=f"{DATASET_UID}-1")
    cluster.end("prepare", away.to_json(), 12)
    why = "SourceUnavailable: status 503 (first failure; next attempt at 03:01:02 UTC)"
    assert waits_for(cluster) == (
        "WaitingForDataset",
        f"waiting for Dataset tickets, which is blocked. {why}",
    )
    phases = {cluster.objects[key]["status"]["phase"] for key in (("Dataset", DATASET), ("FineTuneJob", JOB))}
    assert phases == {"Blocked"}, "the alert on blocked runs counts it"
    cluster.now += timedelta(seconds=300)
    assert waits_for(cluster) == ("WaitingForDataset", "waiting for Dataset tickets to be prepared")
    cluster.succeed("prepare", prepared())
    assert waits_for(cluster)[0] == "Queued"


def test_a_version_of_another_dataset_is_not_found() -> None:
    cluster = cluster_of(*with_claims(profile()), dataset={"ref": {"name": "other", "version": VERSION}})
    cluster.succeed("prepare", prepared())
    reason, message = waits_for(cluster)
    assert reason == "DatasetVersionNotFound"
    assert "kubectl get dsv -n team" in message


@pytest.mark.parametrize("ref", [{"name": DATASET}, {"name": DATASET, "version": VERSION}], ids=str)
def test_a_version_that_is_being_deleted_is_not_taken(ref: Manifest) -> None:
    cluster = cluster_of(*with_claims(profile()), dataset={"ref": ref}, suspend=True)
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.change("DatasetVersion", VERSION, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("DatasetVersion", VERSION)
    cluster.settle()
    cluster.change("FineTuneJob", JOB, suspend=False)
    reason, message = waits_for(cluster)
    assert reason == ("DatasetVersionNotFound" if "version" in ref else "WaitingForDataset")
    assert VERSION in message
    assert cluster.job(JOB).status.resolved.dataset_version is None


def test_a_named_version_is_used_although_its_dataset_is_gone() -> None:
    cluster = cluster_of(*with_claims(profile()), dataset={"ref": {"name": DATASET, "version": VERSION}})
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.remove("Dataset", DATASET)
    cluster.settle()
    assert cluster.has_stage_job("preflight")


def test_data_in_another_store_is_prepared_again_in_the_store_that_the_dataset_names() -> None:
    cluster = cluster_of(
        *with_claims(profile()), claim("elsewhere", "ReadWriteMany"), store={"uri": "pvc://elsewhere"}
    )
    cluster.succeed("prepare", prepared())
    reason, message = waits_for(cluster)
    assert reason == "DatasetNotInStore"
    assert "is in pvc://artifacts, but this run uses pvc://elsewhere" in message
    cluster.change("Dataset", DATASET, store={"uri": "pvc://elsewhere"})
    cluster.settle()
    cluster.succeed("prepare", prepared(run=f"{DATASET_UID}-2"))
    assert waits_for(cluster)[0] == "Queued"
    assert cluster.objects["DatasetVersion", VERSION]["status"]["locations"] == [
        "pvc://artifacts",
        "pvc://elsewhere",
    ]


def test_an_evaluation_without_held_out_rows_ends_the_run_before_training() -> None:
    cluster = cluster_of(*with_claims(profile()))
    cluster.succeed("prepare", prepared(test_rows=0))
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert condition is not None
    assert "raise split.test" in condition["message"]
    assert not cluster.has_stage_job("preflight")


def test_invalid_inline_rows_end_the_run_before_any_device_is_requested_and_are_reported() -> None:
    cluster = cluster_of(
        *with_claims(profile()), dataset={"source": {"uri": "configmap://tickets/rows.jsonl"}}
    )
    cluster.remove("Dataset", DATASET)
    result = failed("prepare", "InvalidData", "2 of 240 rows are invalid", run=JOB_UID)
    found = prepared(problem_count=2, problems=("row 17: completion is empty", "row 40: not JSON")).prepare
    cluster.end("prepare", result.model_copy(update={"prepare": found}).to_json(), exit_code=11)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Stalled": "InvalidData"}
    assert cluster.job(JOB).status.problems == ("row 17: completion is empty", "row 40: not JSON")
    assert not cluster.has_stage_job("train")


def test_inline_rows_become_a_version_of_the_run_itself() -> None:
    cluster = cluster_of(
        *with_claims(profile()), dataset={"source": {"uri": "configmap://tickets/rows.jsonl"}}
    )
    cluster.remove("Dataset", DATASET)
    cluster.settle()
    assert cluster.config("prepare").sources[0].path == "/mnt/sources/0/rows.jsonl"
    cluster.succeed("prepare", prepared(run=JOB_UID, warning_count=1, warnings=("line 3: a secret",)))
    cluster.settle()
    name = f"{JOB}-data-{'d' * 12}"
    faults = [event.message for event in cluster.events if event.reason == "DataProblems"]
    assert faults == [f"DatasetVersion {name}: warnings: 1; the first: line 3: a secret"]
    assert cluster.job(JOB).status.resolved.dataset_version == name
    assert cluster.objects["DatasetVersion", name]["status"]["locations"] == ["pvc://artifacts"]
    assert "ownerReferences" not in cluster.objects["DatasetVersion", name]["metadata"]
    assert cluster.has_stage_job("preflight")
