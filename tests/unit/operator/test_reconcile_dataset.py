"""Datasets: prepared once a generation, with rows named where they are wrong."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.dataset import Dataset
from finetune_operator.build.labels import dataset_version_name
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    DATASET,
    DATASET_UID,
    VERSION,
    claim,
    dataset,
    digest,
    failed,
    prepared,
    profile,
    surroundings,
)


def cluster_of(**spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(*surroundings(), dataset(**spec))
    cluster.settle()
    return cluster


def status(cluster: MemoryCluster) -> Any:
    return Dataset.model_validate(cluster.objects["Dataset", DATASET]).status


def test_a_prepared_dataset_has_a_version_with_its_rows_and_digest() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared(problem_count=1, problems=("row 3: empty, dropped",)))
    cluster.settle()
    found = status(cluster)
    assert (found.latest_version, found.rows, found.format) == (VERSION, 240, "PromptCompletion")
    assert (found.problem_count, found.problems) == (1, ("row 3: empty, dropped",))
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    record = cluster.objects["DatasetVersion", VERSION]
    assert record["spec"]["rows"] == 240
    assert record["status"]["locations"] == ["pvc://artifacts"]
    assert "ownerReferences" not in record["metadata"]


def test_a_ready_dataset_is_not_prepared_again_after_its_job_is_gone() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.now += timedelta(hours=1)
    cluster.settle()
    assert cluster.of("Job") == {}
    before = cluster.writes
    cluster.settle()
    assert cluster.writes == before


def test_a_changed_dataset_is_prepared_anew_and_keeps_its_older_version() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.change("Dataset", DATASET, split={"seed": 7})
    cluster.settle()
    assert "Ready" not in cluster.states("Dataset", DATASET)
    cluster.succeed("prepare", prepared(run=f"{DATASET_UID}-2", dataset=digest("e")))
    cluster.settle()
    newest = dataset_version_name(DATASET, digest("e"))
    assert [version.name for version in status(cluster).versions] == [newest, VERSION]
    assert set(cluster.of("DatasetVersion")) == {newest, VERSION}


def test_a_dataset_changed_while_it_is_prepared_drops_the_older_job() -> None:
    cluster = cluster_of()
    old = cluster.stage_job("prepare")["metadata"]["name"]
    cluster.change("Dataset", DATASET, split={"seed": 7})
    cluster.settle()
    assert cluster.stage_job("prepare")["metadata"]["name"] != old
    assert cluster.config("prepare").run == f"{DATASET_UID}-2"


def test_bad_rows_stall_the_dataset_and_are_named() -> None:
    cluster = cluster_of()
    result = failed("prepare", "InvalidData", "1 row is invalid: correct it", run=f"{DATASET_UID}-1")
    found = prepared(problem_count=1, problems=("row 17: completion is empty",)).prepare
    cluster.end("prepare", result.model_copy(update={"prepare": found}).to_json(), exit_code=11)
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Stalled": "InvalidData"}
    assert status(cluster).problems == ("row 17: completion is empty",)
    assert cluster.of("DatasetVersion") == {}
    cluster.now += timedelta(days=1)
    cluster.settle()
    assert cluster.of("Job") == {}
    assert cluster.states("Dataset", DATASET) == {"Stalled": "InvalidData"}


@pytest.mark.parametrize("reason", ["SourceNotFound", "StoreUnavailable"])
def test_a_source_or_store_that_is_away_is_tried_again_every_five_minutes(reason: str) -> None:
    cluster = cluster_of()
    result = failed("prepare", reason, "not there", run=f"{DATASET_UID}-1")
    cluster.end("prepare", result.to_json(), exit_code=11)
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": reason}
    assert status(cluster).phase == "Blocked"
    condition = cluster.condition("Dataset", DATASET, "Reconciling")
    assert condition is not None
    assert condition["message"] == "not there (tried again every 5 minutes)"
    failed_job = cluster.stage_job("prepare")["metadata"]["uid"]
    assert cluster.plan("Dataset", DATASET).requeue_after == 300
    cluster.now += timedelta(seconds=300)
    cluster.settle()
    assert cluster.stage_job("prepare")["metadata"]["uid"] != failed_job
    cluster.succeed("prepare", prepared())
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}


def test_a_dataset_with_a_store_of_its_own_needs_no_profile() -> None:
    cluster = MemoryCluster(claim("rows", "ReadWriteMany"), dataset(store={"uri": "pvc://rows/store"}))
    cluster.settle()
    config = cluster.config("prepare")
    assert (config.store.uri, config.store.path) == ("pvc://rows/store", "/mnt/store/store")


@pytest.mark.parametrize(
    ("objects", "spec", "reason"),
    [
        ((), {}, "StoreMissing"),
        ((profile(), profile("gpu")), {}, "DefaultProfileConflict"),
        ((profile(),), {}, "StoreNotFound"),
        ((profile(), claim("artifacts")), {"source": {"uri": "pvc://rows/x.csv"}}, "SourceNotFound"),
        ((profile(singleNode=False), claim("artifacts")), {}, "StoreNotShareable"),
    ],
)
def test_a_blocked_dataset_says_what_is_missing(objects: Any, spec: Any, reason: str) -> None:
    cluster = MemoryCluster(*objects, dataset(**spec))
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": reason}
    assert cluster.of("Job") == {}
    assert cluster.plan("Dataset", DATASET).requeue_after is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"refresh": {"intervalSeconds": 900}}, "spec.refresh is not implemented"),
        ({"cleaning": {"nearDuplicates": "Remove"}}, "spec.cleaning.nearDuplicates is not implemented"),
    ],
)
def test_what_this_release_does_not_act_on_stalls_a_dataset(spec: Any, message: str) -> None:
    cluster = cluster_of(**spec)
    condition = cluster.condition("Dataset", DATASET, "Stalled")
    assert condition is not None
    assert message in condition["message"]
    assert cluster.of("Job") == {}


def test_a_dataset_goes_on_when_a_name_conflict_is_resolved() -> None:
    cluster = cluster_of()
    cluster.remove("Job", cluster.stage_job("prepare")["metadata"]["name"])
    stalled = {
        "type": "Stalled",
        "status": "True",
        "reason": "NameConflict",
        "message": "taken",
        "lastTransitionTime": "2030-01-02T03:00:00Z",
    }
    cluster.objects["Dataset", DATASET]["status"] = {"observedGeneration": 1, "conditions": [stalled]}
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "Queued"}
    assert cluster.has_stage_job("prepare")


def test_a_version_whose_store_nobody_knows_says_what_to_annotate() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    record = cluster.objects["DatasetVersion", VERSION]
    cluster.remove("Dataset", DATASET)
    record["metadata"]["annotations"], record["status"] = {}, {"observedGeneration": -1}
    cluster.settle()
    condition = cluster.condition("DatasetVersion", VERSION, "Available")
    assert condition is not None
    assert condition["status"] == "False"
    assert "finetune.dev/store" in condition["message"]
