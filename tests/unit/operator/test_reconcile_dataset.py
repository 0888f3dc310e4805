# SPDX-License-Identifier: Apache-2.0
"""Datasets: prepared once a generation, with rows named where they are wrong."""

import json
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.dataset import Dataset
from finetune_operator.manifests.labels import dataset_version_name
from finetune_trainer.contract.configs import PrepareConfig
from finetune_trainer.contract.results import Difference
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    DATASET,
    DATASET_UID,
    ROWS,
    STORE,
    VERSION,
    claim,
    dataset,
    digest,
    failed,
    prepared,
    prerequisites,
    profile,
)


def cluster_of(**spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(*prerequisites(), dataset(**spec))
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


def test_a_deleted_version_is_not_named_any_more_and_written_once() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.change("Dataset", DATASET, split={"seed": 7})
    cluster.settle()
    cluster.succeed("prepare", prepared(run=f"{DATASET_UID}-2", dataset=digest("e")))
    cluster.settle()
    cluster.remove("DatasetVersion", VERSION)
    before = cluster.writes
    cluster.settle()
    newest = dataset_version_name(DATASET, digest("e"))
    assert [version.name for version in status(cluster).versions] == [newest]
    assert cluster.writes == before + 1


@pytest.mark.parametrize("limit", [None, 5 << 30])
def test_the_default_profile_limits_the_size_of_the_source(limit: int | None) -> None:
    limited = profile(limits={"unpackedBytes": limit})
    cluster = MemoryCluster(limited, claim("artifacts"), dataset())
    cluster.settle()

    config = cluster.config("prepare")
    assert isinstance(config, PrepareConfig)
    assert config.max_unpacked_bytes == limit


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
def test_a_source_or_store_that_is_away_is_tried_again(reason: str) -> None:
    cluster = cluster_of()
    result = failed("prepare", reason, "not there", run=f"{DATASET_UID}-1")
    cluster.end("prepare", result.to_json(), exit_code=11)
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": reason}
    assert status(cluster).phase == "Blocked"
    condition = cluster.condition("Dataset", DATASET, "Reconciling")
    assert condition is not None
    assert condition["message"].startswith("not there (first failure; next attempt at 03:0")
    failed_job = cluster.stage_job("prepare")["metadata"]["uid"]
    wait = cluster.plan("Dataset", DATASET).requeue_after
    assert wait is not None
    assert wait == pytest.approx(60, rel=0.11)
    cluster.now += timedelta(seconds=wait)
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
        ((profile(namespaces={"names": ["research"]}),), {}, "ProfileNotAllowed"),
        ((profile(),), {}, "StoreNotFound"),
        ((profile(), claim("artifacts")), {"sources": [{"uri": "pvc://rows/x.csv"}]}, "SourceNotFound"),
        ((profile(store={"uri": STORE}), claim("artifacts")), {}, "StoreNotShareable"),
    ],
)
def test_a_blocked_dataset_reports_what_is_missing(objects: Any, spec: Any, reason: str) -> None:
    cluster = MemoryCluster(*objects, dataset(**spec))
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": reason}
    assert cluster.of("Job") == {}
    assert cluster.plan("Dataset", DATASET).requeue_after is None


def test_a_dataset_whose_namespace_may_not_use_the_default_profile_can_have_its_own_store() -> None:
    cluster = MemoryCluster(
        profile(namespaces={"names": ["research"]}), claim("artifacts", "ReadWriteMany"), dataset()
    )
    cluster.settle()
    found = cluster.condition("Dataset", DATASET, "Reconciling")
    assert found is not None
    assert "or set spec.store, which needs no profile" in found["message"]

    cluster.change("Dataset", DATASET, store={"uri": "pvc://artifacts"})
    cluster.settle()
    assert cluster.has_stage_job("prepare")


def test_what_an_earlier_release_did_not_act_on_is_prepared_by_this_one() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": 900}))
    stalled = {
        "type": "Stalled",
        "status": "True",
        "reason": "NotImplemented",
        "message": "spec.refresh is not implemented in this release; remove it",
        "lastTransitionTime": "2030-01-02T03:00:00Z",
    }
    cluster.objects["Dataset", DATASET]["status"] = {"observedGeneration": 1, "conditions": [stalled]}
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "Queued"}
    assert cluster.has_stage_job("prepare")


def test_what_a_new_version_left_out_and_warns_of_is_in_the_status_and_in_an_event_with_the_report() -> None:
    cluster = cluster_of()
    report = "pvc://artifacts/runs/d-1/prepare/report.html"
    cluster.succeed(
        "prepare",
        prepared(
            problem_count=3,
            problems=("rows.jsonl, line 7: prompt is empty",),
            warning_count=12,
            warnings=tuple(f"line {line}: e-mail address" for line in range(12)),
            report_uri=report,
        ),
    )
    cluster.settle()
    found = status(cluster)
    assert (found.problem_count, found.warning_count, found.report) == (3, 12, report)
    assert found.warnings == tuple(f"line {line}: e-mail address" for line in range(10))
    (event,) = [event for event in cluster.events if event.reason == "DataProblems"]
    assert event.type == "Warning"
    assert event.message == (
        f"DatasetVersion {VERSION}: problems in rows that were left out: 3; warnings: 12;"
        f" the first: rows.jsonl, line 7: prompt is empty; all of them: {report}"
    )


def test_a_version_without_faults_has_no_event_about_them() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    assert "DataProblems" not in [event.reason for event in cluster.events]


def test_a_long_first_problem_leaves_room_for_the_reports_uri_in_the_event() -> None:
    cluster = cluster_of()
    report = "pvc://artifacts/report.html"
    cluster.succeed("prepare", prepared(warning_count=1, warnings=("x" * 3000,), report_uri=report))
    cluster.settle()
    (event,) = [event for event in cluster.events if event.reason == "DataProblems"]
    assert len(event.message) <= 1024
    assert event.message.endswith(report)


def test_a_version_made_with_another_spec_is_compared_with_the_one_before() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared(source_version="etag-1"))
    cluster.settle()
    assert status(cluster).difference is None
    cluster.change("Dataset", DATASET, split={"seed": 7})
    cluster.settle()
    config = cluster.config("prepare")
    known = [source.known_version for source in config.sources]
    assert (config.previous, known) == (ROWS, [None]), "other rows may come of the same source"
    difference = Difference(previous=ROWS, added=12, removed=3, changed=1)
    second = prepared(run=f"{DATASET_UID}-2", dataset=digest("e"), difference=difference)
    cluster.succeed("prepare", second)
    cluster.settle()
    found = status(cluster).difference
    assert (found.previous, found.added, found.removed, found.changed) == (VERSION, 12, 3, 1)
    beside = f"+12 −3 ~1 rows compared with {VERSION}"
    newest = dataset_version_name(DATASET, digest("e"))
    created = [event.message for event in cluster.events if event.reason == "DatasetVersionCreated"]
    assert created == [
        f"DatasetVersion {VERSION} with 240 rows",
        f"DatasetVersion {newest} with 240 rows ({beside})",
    ]
    ready = cluster.condition("Dataset", DATASET, "Ready")
    assert ready is not None
    assert (
        ready["message"]
        == f"DatasetVersion {newest} has 240 rows (192 train, 24 validation, 24 test; {beside})"
    )


def test_a_version_in_another_store_or_on_its_way_out_is_not_compared_with() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.add(claim("elsewhere", "ReadWriteMany"))
    cluster.change("Dataset", DATASET, store={"uri": "pvc://elsewhere"})
    cluster.settle()
    assert cluster.config("prepare").previous is None
    cluster.change("DatasetVersion", VERSION, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("DatasetVersion", VERSION)
    cluster.change("Dataset", DATASET, store={"uri": "pvc://artifacts"})
    cluster.settle()
    assert cluster.config("prepare").previous is None


def test_the_status_stays_below_32_kib_whatever_a_pod_reports() -> None:
    cluster = cluster_of()
    # The kubelet keeps no more than 4,096 bytes of a termination message.
    texts = tuple("😀" * 90 for _ in range(5))
    wide: dict[str, Any] = {"problem_count": 5, "problems": texts, "warning_count": 5, "warnings": texts}
    for number in range(12):
        result = prepared(run=f"{DATASET_UID}-{number + 1}", dataset=digest(f"{number:x}"), **wide)
        cluster.succeed("prepare", result)
        cluster.settle()
        cluster.change("Dataset", DATASET, split={"seed": number + 1})
        cluster.settle()
    cluster.succeed("prepare", prepared(run=f"{DATASET_UID}-13", **wide))
    cluster.settle()
    cluster.annotate("Dataset", DATASET, refresh_requested="now" * 1000)
    cluster.settle()
    result = failed("prepare", "InvalidData", "😀" * 1000, run=f"{DATASET_UID}-13-1")
    cluster.end("prepare", result.to_json(), exit_code=11)
    cluster.settle()
    written = json.dumps(cluster.objects["Dataset", DATASET]["status"], ensure_ascii=False).encode()
    assert len(status(cluster).versions) == 10
    assert len(written) < 32 * 1024


def test_a_version_with_an_unknown_store_reports_which_annotation_to_set() -> None:
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
