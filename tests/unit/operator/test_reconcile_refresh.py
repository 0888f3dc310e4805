# SPDX-License-Identifier: Apache-2.0
"""Datasets whose source is checked again: when, how often, and with which outcome."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.dataset import Dataset, DatasetStatus, RefreshStatus, SourceDifference
from finetune_operator.manifests.labels import dataset_version_name
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.passes import block
from finetune_operator.reconcile.records.source_check_schedule import next_check
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType
from finetune_trainer.contract.configs import PrepareConfig
from finetune_trainer.contract.results import (
    Difference,
    PrepareResult,
    SourceResult,
    SourceRows,
    StageResult,
)
from finetune_trainer.contract.results import SourceDifference as ContractSourceDifference
from finetune_trainer.contract.vocabulary import RULE_VERSION
from tests.unit.operator.memorycluster import NOW, MemoryCluster
from tests.unit.operator.runobjects import (
    DATASET,
    DATASET_UID,
    JOB,
    ROWS,
    VERSION,
    dataset,
    digest,
    failed,
    finetunejob,
    prepared,
    prerequisites,
)

INTERVAL = 7200
"""Longer than an hour, so that the Jobs of one check are gone before the next."""
LATEST = f"latest {VERSION}"
NEWER = digest("e")
NEWER_VERSION = dataset_version_name(DATASET, NEWER)


def ready(*objects: Manifest, version: str | None = "etag-1", **spec: Any) -> MemoryCluster:
    """A Dataset that has been prepared and is checked every two hours."""
    cluster = MemoryCluster(
        *prerequisites(), *objects, dataset(refresh={"intervalSeconds": INTERVAL}, **spec)
    )
    cluster.settle()
    cluster.succeed("prepare", prepared(source_version=version))
    cluster.settle()
    return cluster


def status(cluster: MemoryCluster) -> DatasetStatus:
    return Dataset.model_validate(cluster.objects["Dataset", DATASET]).status


def until_due(cluster: MemoryCluster) -> None:
    """Let time pass until the next check is due, and settle."""
    refresh = status(cluster).refresh
    assert refresh is not None
    assert refresh.next_check_at is not None
    cluster.now = max(cluster.now, refresh.next_check_at)
    cluster.settle()


def checks(cluster: MemoryCluster) -> int:
    refresh = status(cluster).refresh
    return refresh.checks if refresh is not None else 0


def run_of(cluster: MemoryCluster) -> str:
    run: str = cluster.config("prepare").run
    return run


def unchanged(cluster: MemoryCluster) -> None:
    found = PrepareResult(unchanged=True, sources=(SourceResult(version="etag-1"),))
    result = StageResult(stage="prepare", run=run_of(cluster), outcome="Succeeded", prepare=found)
    cluster.succeed("prepare", result)
    cluster.settle()


def changed(cluster: MemoryCluster, **fields: Any) -> None:
    given = {"dataset": NEWER, "source_version": "etag-2", **fields}
    cluster.succeed("prepare", prepared(run=run_of(cluster), **given))
    cluster.settle()


def broken(cluster: MemoryCluster, reason: str, message: str, found: PrepareResult | None = None) -> None:
    result = failed("prepare", reason, message, run=run_of(cluster), prepare=found)
    cluster.end("prepare", result.to_json(), exit_code=11)
    cluster.settle()


def bad_rows(cluster: MemoryCluster, message: str = "1 row is invalid: correct it") -> None:
    found = PrepareResult(
        problem_count=1,
        problems=("row 17: completion is empty",),
        sources=(SourceResult(version="etag-2"),),
    )
    broken(cluster, "InvalidData", message, found)


def versions(refresh: RefreshStatus) -> list[str | None]:
    return [source.version for source in refresh.sources or ()]


def known(cluster: MemoryCluster) -> list[str | None]:
    """Versions of the sources at which the prepare Job does nothing."""
    return [source.known_version for source in cluster.config("prepare").sources]


def refreshed(cluster: MemoryCluster) -> tuple[str, str, str] | None:
    condition = cluster.condition("Dataset", DATASET, "Refreshed")
    return None if condition is None else (condition["status"], condition["reason"], condition["message"])


def messages(cluster: MemoryCluster, reason: str) -> list[str]:
    return [event.message for event in cluster.events if event.reason == reason]


def test_the_source_is_checked_when_it_is_due_and_not_before() -> None:
    cluster = ready()
    first = status(cluster).refresh
    assert first is not None
    assert (first.checks, first.checked_at, versions(first)) == (1, NOW, ["etag-1"])
    assert first.next_check_at is not None
    assert 0.9 * INTERVAL <= (first.next_check_at - NOW).total_seconds() <= 1.1 * INTERVAL
    cluster.now = first.next_check_at - timedelta(seconds=1)
    cluster.settle()
    assert not cluster.has_stage_job("prepare")
    assert cluster.plan("Dataset", DATASET).requeue_after == 1
    until_due(cluster)
    assert run_of(cluster) == f"{DATASET_UID}-1-1"
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    cluster.start("prepare")
    before = cluster.writes
    cluster.now += timedelta(hours=9)
    cluster.settle()
    assert cluster.writes == before, "one Job per check, however long it takes"


def test_a_settled_dataset_wakes_for_whatever_comes_first() -> None:
    cluster = ready()
    assert cluster.plan("Dataset", DATASET).requeue_after == 3600, "its finished Job is cleared away"
    cluster.now += timedelta(hours=1)
    cluster.settle()
    refresh = status(cluster).refresh
    assert refresh is not None
    assert refresh.next_check_at is not None
    left = (refresh.next_check_at - cluster.now).total_seconds()
    assert cluster.plan("Dataset", DATASET).requeue_after == left


def test_checks_that_became_due_while_no_operator_ran_do_not_all_start_at_once() -> None:
    began: dict[int, float] = {}
    for number in range(30):
        cluster = ready()
        cluster.objects["Dataset", DATASET]["metadata"]["uid"] = f"d0000000-0000-4000-8000-{number:012d}"
        refresh = status(cluster).refresh
        assert refresh is not None
        assert refresh.next_check_at is not None
        back = cluster.now = refresh.next_check_at + timedelta(hours=5)
        for _ in range(3):
            plan = cluster.reconcile("Dataset", DATASET)
            if plan.create:
                break
            assert plan.requeue_after is not None
            cluster.now += timedelta(seconds=plan.requeue_after)
        else:
            raise AssertionError("no check has started")
        began[number] = (cluster.now - back).total_seconds()
    assert max(began.values()) <= 600
    minutes = [began[number] // 60 for number in began]
    assert max(minutes.count(minute) for minute in set(minutes)) <= 10


def test_a_check_that_a_user_requests_is_never_delayed() -> None:
    cluster = ready()
    refresh = status(cluster).refresh
    assert refresh is not None
    assert refresh.next_check_at is not None
    cluster.now = refresh.next_check_at + timedelta(hours=5)
    cluster.annotate("Dataset", DATASET, refresh_requested="now")
    cluster.settle()
    assert cluster.has_stage_job("prepare")


def test_checks_are_spread_by_a_tenth_of_the_interval_and_equal_for_the_same_check() -> None:
    spread = []
    for number in range(300):
        manifest = dataset(refresh={"intervalSeconds": 10_000})
        manifest["metadata"]["uid"] = f"uid-{number % 20}"
        one = Dataset.model_validate(manifest)
        due = next_check(one, number, NOW)
        assert due is not None
        assert due == next_check(one, number, NOW)
        spread.append((due - NOW).total_seconds())
    assert min(spread) >= 9000
    assert max(spread) <= 11_000
    assert min(spread) < 9200
    assert max(spread) > 10_800
    assert len(set(spread)) > 200


def test_a_source_that_has_not_changed_makes_nothing() -> None:
    cluster = ready()
    until_due(cluster)
    config = cluster.config("prepare")
    assert isinstance(config, PrepareConfig)
    assert (known(cluster), config.previous) == (["etag-1"], ROWS)
    before = status(cluster)
    unchanged(cluster)
    after = status(cluster)
    assert after.refresh is not None
    assert (after.refresh.checks, versions(after.refresh)) == (2, ["etag-1"])
    assert after.refresh.checked_at == cluster.now
    assert after.refresh.next_check_at is not None
    assert after.refresh.next_check_at > cluster.now
    assert refreshed(cluster) == (
        "True",
        "Succeeded",
        f"the source still has the rows of DatasetVersion {VERSION}",
    )
    kept = {"refresh", "conditions"}
    assert after.model_dump(exclude=kept) == before.model_dump(exclude=kept)
    assert list(cluster.of("DatasetVersion")) == [VERSION]
    until_due(cluster)
    assert run_of(cluster) == f"{DATASET_UID}-1-2"


def test_what_is_new_in_the_source_becomes_one_version_and_the_dataset_is_ready_all_the_time() -> None:
    cluster = ready()
    until_due(cluster)
    cluster.start("prepare")
    cluster.settle()
    assert status(cluster).latest_version == VERSION
    changed(cluster, difference=Difference(previous=ROWS, added=5, removed=0, changed=2))
    found = status(cluster)
    assert found.latest_version == NEWER_VERSION
    assert [version.name for version in found.versions] == [NEWER_VERSION, VERSION]
    assert found.difference is not None
    assert (found.difference.previous, found.difference.added) == (VERSION, 5)
    assert set(cluster.of("DatasetVersion")) == {VERSION, NEWER_VERSION}
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded", "Refreshed": "Succeeded"}
    assert messages(cluster, "DatasetVersionCreated")[-1] == (
        f"DatasetVersion {NEWER_VERSION} with 240 rows (+5 −0 ~2 rows compared with {VERSION})"
    )
    until_due(cluster)
    assert known(cluster) == ["etag-2"]
    assert cluster.config("prepare").previous == NEWER


def test_a_run_takes_the_newest_version_also_while_the_source_is_checked() -> None:
    cluster = ready()
    until_due(cluster)
    cluster.add(finetunejob())
    cluster.settle()
    assert cluster.job(JOB).status.resolved.dataset_version == VERSION
    changed(cluster)
    later = finetunejob()
    later["metadata"].update(name="tickets-v2", uid="0b5e7a10-0000-4000-8000-000000000002")
    cluster.add(later)
    cluster.settle()
    assert cluster.job(JOB).status.resolved.dataset_version == VERSION
    assert cluster.job("tickets-v2").status.resolved.dataset_version == NEWER_VERSION


def test_a_source_that_goes_back_makes_the_older_version_the_latest_again() -> None:
    cluster = ready()
    until_due(cluster)
    changed(cluster)
    until_due(cluster)
    changed(cluster, dataset=ROWS, source_version="etag-1")
    assert [version.name for version in status(cluster).versions] == [VERSION, NEWER_VERSION]
    assert status(cluster).latest_version == VERSION
    assert set(cluster.of("DatasetVersion")) == {VERSION, NEWER_VERSION}


def test_a_server_that_tells_no_versions_is_read_each_time_and_equal_rows_are_nothing_new() -> None:
    cluster = ready(version=None)
    warned = {"warning_count": 1, "warnings": ("line 3: e-mail address",)}
    for number in (2, 3):
        until_due(cluster)
        assert known(cluster) == [None]
        changed(cluster, dataset=ROWS, source_version=None, **warned)
        assert checks(cluster) == number
    assert list(cluster.of("DatasetVersion")) == [VERSION]
    assert len(messages(cluster, "DatasetVersionCreated")) == 1
    assert messages(cluster, "DataProblems") == [], "it is no new version"
    assert status(cluster).warnings == ("line 3: e-mail address",)


def test_broken_rows_in_the_source_leave_the_latest_version_in_use_and_are_named() -> None:
    cluster = ready()
    until_due(cluster)
    bad_rows(cluster)
    found = status(cluster)
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    assert (found.phase, found.latest_version, found.rows) == ("Ready", VERSION, 240)
    message = (
        f"DatasetVersion {VERSION} stays in use; the last check of the source: 1 row is invalid: correct it"
    )
    assert refreshed(cluster) == ("False", "InvalidData", message)
    assert messages(cluster, "RefreshFailed") == [message]
    assert (found.problem_count, found.problems) == (1, ("row 17: completion is empty",))
    assert list(cluster.of("DatasetVersion")) == [VERSION]
    assert checks(cluster) == 2
    cluster.now += timedelta(seconds=300)
    cluster.settle()
    assert run_of(cluster) == f"{DATASET_UID}-1-1", "the next check waits until it is due"


def test_rows_that_were_refused_are_read_again_and_the_status_tells_the_sources_state() -> None:
    cluster = ready()
    until_due(cluster)
    bad_rows(cluster)
    until_due(cluster)
    assert known(cluster) == [None]
    changed(cluster, dataset=ROWS, source_version="etag-3")
    found = status(cluster)
    assert (found.problem_count, found.problems) == (0, ())
    assert refreshed(cluster) is not None
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded", "Refreshed": "Succeeded"}
    until_due(cluster)
    assert known(cluster) == ["etag-3"]


def test_a_failing_check_is_reported_once_for_each_reason() -> None:
    cluster = ready()
    for number in range(3):
        until_due(cluster)
        bad_rows(cluster, f"row {number} is invalid")
    assert len(messages(cluster, "RefreshFailed")) == 1
    until_due(cluster)
    broken(cluster, "SourceUnavailable", "status 503")
    assert len(messages(cluster, "RefreshFailed")) == 2
    until_due(cluster)
    changed(cluster, dataset=ROWS)
    until_due(cluster)
    broken(cluster, "SourceUnavailable", "status 503")
    assert len(messages(cluster, "RefreshFailed")) == 3


@pytest.mark.parametrize("reason", ["SourceNotFound", "SourceUnavailable", "StoreUnavailable"])
def test_a_source_or_store_that_is_unavailable_is_checked_again_after_the_interval(reason: str) -> None:
    cluster = ready()
    until_due(cluster)
    ended = cluster.now
    broken(cluster, reason, "status 503")
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    assert refreshed(cluster) == (
        "False",
        reason,
        f"DatasetVersion {VERSION} stays in use; the last check of the source: status 503",
    )
    refresh = status(cluster).refresh
    assert refresh is not None
    assert refresh.next_check_at is not None
    assert (refresh.next_check_at - ended).total_seconds() >= 0.9 * INTERVAL
    until_due(cluster)
    assert known(cluster) == ["etag-1"]
    unchanged(cluster)
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded", "Refreshed": "Succeeded"}


def test_a_pod_that_ends_without_a_word_leaves_the_latest_version_in_use() -> None:
    cluster = ready()
    until_due(cluster)
    cluster.end("prepare", "", exit_code=137, reason="OOMKilled")
    cluster.settle()
    found = refreshed(cluster)
    assert found is not None
    assert found[:2] == ("False", "OutOfMemory")
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}


def test_a_result_that_names_nothing_is_no_new_version() -> None:
    cluster = ready()
    until_due(cluster)
    changed(cluster, dataset=None)
    found = refreshed(cluster)
    assert found is not None
    assert found[:2] == ("False", "ResultLost")
    assert status(cluster).latest_version == VERSION


def test_a_missing_prerequisite_is_reported_and_the_check_follows_when_it_exists() -> None:
    cluster = ready()
    gone = cluster.objects.pop(("PersistentVolumeClaim", "artifacts"))
    until_due(cluster)
    found = refreshed(cluster)
    assert found is not None
    assert found[:2] == ("False", "StoreNotFound")
    assert not cluster.has_stage_job("prepare")
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    # The claim itself is looked up from time to time.
    assert cluster.plan("Dataset", DATASET).requeue_after is None
    assert checks(cluster) == 1
    assert len(messages(cluster, "RefreshFailed")) == 1
    cluster.add(gone)
    cluster.settle()
    unchanged(cluster)
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded", "Refreshed": "Succeeded"}


def test_a_result_whose_pod_is_gone_is_read_from_the_store() -> None:
    cluster = ready()
    until_due(cluster)
    run = run_of(cluster)
    cluster.end_job("prepare", "Complete")
    cluster.now += timedelta(minutes=1)
    cluster.settle()
    assert cluster.config("collect").run == run
    cluster.succeed("collect", prepared(run=run, dataset=NEWER))
    cluster.settle()
    assert status(cluster).latest_version == NEWER_VERSION


def test_an_annotation_requests_one_check_now() -> None:
    cluster = ready()
    cluster.now += timedelta(hours=1)
    cluster.settle()
    cluster.annotate("Dataset", DATASET, refresh_requested="monday")
    cluster.settle()
    assert run_of(cluster) == f"{DATASET_UID}-1-1"
    unchanged(cluster)
    found = status(cluster).refresh
    assert found is not None
    assert (found.checks, found.requested) == (2, "monday")
    cluster.now += timedelta(hours=1)
    cluster.settle()
    assert not cluster.has_stage_job("prepare"), "a value is answered once"
    cluster.annotate("Dataset", DATASET, refresh_requested="tuesday")
    cluster.settle()
    assert run_of(cluster) == f"{DATASET_UID}-1-2"


def test_a_dataset_without_refresh_is_checked_on_request() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset())
    cluster.settle()
    cluster.succeed("prepare", prepared(source_version="etag-1"))
    cluster.settle()
    cluster.now += timedelta(days=30)
    cluster.settle()
    assert cluster.plan("Dataset", DATASET).requeue_after is None
    cluster.annotate("Dataset", DATASET, refresh_requested="now")
    cluster.settle()
    assert known(cluster) == ["etag-1"]
    changed(cluster)
    assert status(cluster).latest_version == NEWER_VERSION
    refresh = status(cluster).refresh
    assert refresh is not None
    assert refresh.next_check_at is None


def test_a_request_while_the_source_is_being_read_gets_its_own_check() -> None:
    cluster = ready()
    until_due(cluster)
    cluster.annotate("Dataset", DATASET, refresh_requested="after my upload")
    cluster.settle()
    unchanged(cluster)
    assert run_of(cluster) == f"{DATASET_UID}-1-2"
    unchanged(cluster)
    refresh = status(cluster).refresh
    assert refresh is not None
    assert (refresh.checks, refresh.requested) == (3, "after my upload")


def test_a_value_that_was_there_from_the_start_is_answered_by_the_preparation() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset())
    cluster.annotate("Dataset", DATASET, refresh_requested="x" * 5000)
    cluster.settle()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.now += timedelta(hours=1)
    cluster.settle()
    assert cluster.of("Job") == {}
    refresh = status(cluster).refresh
    assert refresh is not None
    assert len(refresh.requested or "") == 64


def test_an_empty_annotation_requests_nothing() -> None:
    cluster = ready()
    cluster.annotate("Dataset", DATASET, refresh_requested="")
    cluster.settle()
    assert checks(cluster) == 1
    assert run_of(cluster) == f"{DATASET_UID}-1"


def test_a_dataset_that_failed_is_prepared_again_on_request() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": INTERVAL}))
    cluster.settle()
    bad_rows(cluster)
    cluster.now += timedelta(days=1)
    cluster.settle()
    assert cluster.of("Job") == {}, "what failed is not polled"
    assert cluster.plan("Dataset", DATASET).requeue_after is None
    cluster.annotate("Dataset", DATASET, refresh_requested="corrected")
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "Queued"}
    assert (run_of(cluster), known(cluster)) == (f"{DATASET_UID}-1-1", [None])
    bad_rows(cluster)
    assert cluster.states("Dataset", DATASET) == {"Stalled": "InvalidData"}
    cluster.annotate("Dataset", DATASET, refresh_requested="corrected at last")
    cluster.settle()
    changed(cluster)
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    assert status(cluster).problems == ()
    assert checks(cluster) == 3


def test_an_invalid_spec_is_not_checked_in_circles_on_request() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(sources=[{"uri": "pvc://rows/*/a.jsonl"}]))
    cluster.annotate("Dataset", DATASET, refresh_requested="now")
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Stalled": "InvalidSpec"}
    before = cluster.writes
    cluster.settle()
    assert cluster.writes == before


def test_another_spec_is_prepared_anew_and_earlier_checks_are_forgotten() -> None:
    cluster = ready()
    until_due(cluster)
    bad_rows(cluster)
    cluster.change("Dataset", DATASET, onInvalidRows="Drop")
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "Queued"}
    assert refreshed(cluster) is None
    assert status(cluster).refresh is None
    config = cluster.config("prepare")
    assert (config.run, known(cluster), config.previous) == (f"{DATASET_UID}-2", [None], ROWS)
    changed(cluster)
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    assert checks(cluster) == 1
    until_due(cluster)
    assert run_of(cluster) == f"{DATASET_UID}-2-1"


def test_a_spec_changed_during_a_check_ends_that_check() -> None:
    cluster = ready()
    until_due(cluster)
    name = cluster.stage_job("prepare")["metadata"]["name"]
    cluster.change("Dataset", DATASET, split={"seed": 7})
    cluster.settle()
    assert cluster.stage_job("prepare")["metadata"]["name"] != name
    assert name not in cluster.of("Job")


def test_the_jobs_of_the_last_check_stay_for_an_hour_and_no_longer_than_until_the_next_has_ended() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": 900}))
    cluster.settle()
    cluster.succeed("prepare", prepared(source_version="etag-1"))
    cluster.settle()
    seen = []
    for _ in range(4):
        until_due(cluster)
        seen.append(cluster.stage_job("prepare")["metadata"]["name"])
        assert len(cluster.of("Job")) == 2
        unchanged(cluster)
        assert list(cluster.of("Job")) == [seen[-1]]
    cluster.change("Dataset", DATASET, refresh=None)
    cluster.settle()
    cluster.succeed("prepare", prepared(run=f"{DATASET_UID}-2"))
    cluster.settle()
    cluster.now += timedelta(hours=1)
    cluster.settle()
    assert cluster.of("Job") == {}
    assert len(set(seen)) == 4


def test_a_check_that_ended_while_the_operator_was_down_is_read_before_it_is_cleared_away() -> None:
    cluster = ready()
    until_due(cluster)
    run = run_of(cluster)
    cluster.succeed("prepare", prepared(run=run, dataset=NEWER))
    cluster.now += timedelta(days=1)
    cluster.settle()
    assert NEWER_VERSION in cluster.of("DatasetVersion")


def test_a_check_whose_job_was_deleted_starts_again() -> None:
    cluster = ready()
    until_due(cluster)
    cluster.remove("Job", cluster.stage_job("prepare")["metadata"]["name"])
    cluster.settle()
    assert run_of(cluster) == f"{DATASET_UID}-1-1"


def test_the_check_after_the_latest_version_was_deleted_makes_it_again() -> None:
    cluster = ready()
    cluster.remove("DatasetVersion", VERSION)
    until_due(cluster)
    config = cluster.config("prepare")
    assert (known(cluster), config.previous) == ([None], None)
    changed(cluster, dataset=ROWS)
    assert VERSION in cluster.of("DatasetVersion")


def test_names_of_checks_stay_within_the_limit_of_a_jobs_name() -> None:
    manifest = dataset(refresh={"intervalSeconds": 900})
    manifest["metadata"]["name"] = "d" * 40
    cluster = MemoryCluster(*prerequisites(), manifest)
    cluster.settle()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    cluster.objects["Dataset", "d" * 40]["status"]["refresh"]["checks"] = 99_999_999
    cluster.annotate("Dataset", "d" * 40, refresh_requested="now")
    cluster.settle()
    assert max(len(name) for name in cluster.of("Job")) == 63


def test_a_check_of_several_sources_names_those_that_changed_and_counts_the_rows_of_each() -> None:
    web = "https://rows.example/b.csv"
    sources = [{"uri": "configmap://tickets/rows.jsonl"}, {"uri": f"{web}?sig=1", "splits": "TrainOnly"}]
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": INTERVAL}, sources=sources))
    cluster.settle()
    first = (SourceResult(version="a-1", train=9, test=1), SourceResult(version="b-1", train=5))
    cluster.succeed("prepare", prepared(sources=first, rule_version=RULE_VERSION))
    cluster.settle()
    until_due(cluster)

    assert known(cluster) == ["a-1", "b-1"]
    assert cluster.config("prepare").previous_sources == (
        SourceRows(uri="configmap://tickets/rows.jsonl", train=9, test=1),
        SourceRows(uri=web, train=5),
    )

    of_source = ContractSourceDifference(uri=web, added=2, removed=1)
    difference = Difference(previous=ROWS, added=2, removed=1, changed=0, sources=(of_source,))
    second = (first[0], SourceResult(version="b-2", train=6))
    changed(cluster, sources=second, difference=difference)

    assert refreshed(cluster) == (
        "True",
        "Succeeded",
        f"new rows of {web} became DatasetVersion {NEWER_VERSION}",
    )
    found = status(cluster).difference
    assert found is not None
    assert found.sources == (SourceDifference(uri=web, added=2, removed=1, changed=0),)
    ready = cluster.condition("Dataset", DATASET, "Ready")
    assert ready is not None
    assert f"+2 −1 ~0 rows compared with {VERSION}: {web} +2 −1 ~0" in ready["message"]


def test_a_source_without_a_version_is_read_again_with_all_others() -> None:
    sources = [{"uri": "configmap://tickets/rows.jsonl"}, {"uri": "https://rows.example/b.csv"}]
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": INTERVAL}, sources=sources))
    cluster.settle()
    found = (SourceResult(version="a-1"), SourceResult())
    cluster.succeed("prepare", prepared(sources=found, rule_version=RULE_VERSION))
    cluster.settle()
    until_due(cluster)

    assert known(cluster) == ["a-1", None]


def test_a_check_that_the_api_server_refuses_leaves_the_dataset_ready() -> None:
    cluster = ready()
    cluster.now += timedelta(hours=1)
    cluster.settle()
    resource = cluster.get("Dataset", DATASET)
    refused = block(resource, "QuotaExceeded", "exceeded quota: team", cluster.now).manifest
    cluster.objects["Dataset", DATASET]["status"] = refused
    assert cluster.states("Dataset", DATASET) == {"Ready": "Succeeded"}
    assert refreshed(cluster) == ("False", "QuotaExceeded", "exceeded quota: team")
    assert refused["phase"] == "Ready"
    cluster.settle()
    assert refreshed(cluster) is None, "what was refused got through"


def test_a_new_dataset_is_prepared_by_the_newest_rule_and_keeps_it() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": INTERVAL}))
    cluster.settle()

    assert cluster.config("prepare").rule_version == RULE_VERSION

    cluster.succeed("prepare", prepared(source_version="etag-1", rule_version=RULE_VERSION))
    cluster.settle()

    assert status(cluster).rule_version == RULE_VERSION
    assert cluster.objects["DatasetVersion", VERSION]["spec"]["ruleVersion"] == RULE_VERSION


def test_a_dataset_keeps_the_rule_of_its_first_version() -> None:
    """As after an upgrade to a release with another newest rule."""
    cluster = ready()
    first = 7
    for kind, name, part in (("Dataset", DATASET, "status"), ("DatasetVersion", VERSION, "spec")):
        cluster.objects[kind, name][part]["ruleVersion"] = first
    until_due(cluster)
    assert cluster.config("prepare").rule_version == first

    cluster.change("Dataset", DATASET, split={"seed": 1})
    cluster.settle()
    assert cluster.config("prepare").rule_version == first

    cluster.remove("DatasetVersion", VERSION)
    cluster.change("Dataset", DATASET, split={"seed": 2})
    cluster.settle()
    assert cluster.config("prepare").rule_version == first


def test_fields_with_a_meaning_that_nothing_reads_are_a_condition_until_the_rows_lack_them() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(refresh={"intervalSeconds": INTERVAL}))
    cluster.settle()
    names = ("system_prompt", "messages[].thinking")
    cluster.succeed("prepare", prepared(source_version="etag-1", unread_fields=names))
    cluster.settle()

    condition = conditions.find_condition(status(cluster).conditions, ConditionType.FIELDS_READ)
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "FieldsIgnored")
    assert condition.message.startswith("Nothing reads system_prompt, messages[].thinking of the rows")
    assert conditions.is_true(status(cluster).conditions, ConditionType.READY)

    until_due(cluster)
    cluster.succeed("prepare", prepared(run_of(cluster), dataset=NEWER, source_version="etag-2"))
    cluster.settle()
    assert conditions.find_condition(status(cluster).conditions, ConditionType.FIELDS_READ) is None
