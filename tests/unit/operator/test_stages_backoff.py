# SPDX-License-Identifier: Apache-2.0
"""A stage whose store or credentials fail is retried after growing waits, with devices once they work."""

from datetime import datetime, timedelta

import pytest

from finetune_operator.manifests.jobs import pod_failure_policy
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.stages.retries import count_failure, due_at
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Stage
from tests.unit.operator.memorycluster import NOW, MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, DATASET, DATASET_UID, JOB, JOB_UID, failed, trained
from tests.unit.operator.runsteps import reached

AWAY = "store pvc://artifacts: no space left"


def state(cluster: MemoryCluster) -> tuple[str, str]:
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    return condition["reason"], condition["message"]


def break_store(cluster: MemoryCluster, stage: Stage) -> None:
    cluster.end(stage, failed(stage, "StoreUnavailable", AWAY).to_json(), exit_code=12)
    cluster.settle()


def wait(cluster: MemoryCluster) -> float:
    """Let time pass until the next pass over the run is due; seconds."""
    seconds = cluster.plan("FineTuneJob", JOB).requeue_after
    assert seconds is not None
    cluster.now += timedelta(seconds=seconds)
    cluster.settle()
    return seconds


def uid(job: Manifest) -> str:
    name: str = job["metadata"]["uid"]
    return name


def probed(cluster: MemoryCluster, reason: str = "ArtifactNotFound", exit_code: int = 10) -> None:
    """The check of the store has ended."""
    cluster.end("collect", failed("train", reason, AWAY).to_json(), exit_code=exit_code)
    cluster.settle()


def test_a_train_job_is_made_again_only_after_a_pod_without_devices_has_used_the_store() -> None:
    cluster = reached("train")
    first = uid(cluster.stage_job("train"))
    break_store(cluster, "train")
    assert state(cluster)[0] == "StoreUnavailable"
    assert not cluster.has_stage_job("collect")
    wait(cluster)
    config = cluster.config("collect")
    assert (config.of, config.probe) == ("train", True)
    requests = cluster.stage_job("collect")["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert set(requests["limits"]) == {"memory"}
    assert uid(cluster.stage_job("train")) == first
    assert state(cluster)[0] == "CheckingStore"
    probed(cluster)
    assert uid(cluster.stage_job("train")) != first
    assert not cluster.has_stage_job("collect")
    assert state(cluster)[0] == "Queued"


def test_devices_stay_free_while_the_check_of_the_store_fails() -> None:
    cluster = reached("train")
    first = uid(cluster.stage_job("train"))
    break_store(cluster, "train")
    waited = []
    for _ in range(9):
        waited.append(wait(cluster))
        probed(cluster, "StoreUnavailable", 12)
        reason, message = state(cluster)
        assert (reason, AWAY in message) == ("StoreUnavailable", True)
    assert uid(cluster.stage_job("train")) == first
    expected = [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert waited == pytest.approx(expected, rel=0.11)


def test_a_result_that_the_check_finds_in_the_store_is_taken() -> None:
    cluster = reached("train")
    break_store(cluster, "train")
    wait(cluster)
    cluster.end("collect", trained().to_json())
    cluster.settle()
    assert set(cluster.of("Checkpoint")) == {CHECKPOINT}


@pytest.mark.parametrize(("message", "code"), [("", 137), ("contract mismatch", 10)])
def test_a_check_that_cannot_run_starts_no_devices(message: str, code: int) -> None:
    cluster = reached("train")
    first = uid(cluster.stage_job("train"))
    break_store(cluster, "train")
    wait(cluster)
    cluster.end("collect", message, exit_code=code)
    cluster.now += timedelta(seconds=11)
    reason, said = state(cluster)
    assert reason == "StageFailed"
    assert f"exit code {code}" in said
    assert uid(cluster.stage_job("train")) == first


def test_failures_in_a_row_are_counted_over_all_tries_and_forgotten_after_a_success() -> None:
    cluster = reached("train")
    for failures in (1, 2, 3):
        break_store(cluster, "train")
        retry = cluster.job(JOB).status.retry
        assert retry is not None
        assert (retry.stage, retry.failures) == ("train", failures)
        wait(cluster)
        probed(cluster)
    cluster.succeed("train", trained(), after=60)
    cluster.settle()
    assert cluster.job(JOB).status.retry is None


def test_a_probe_of_an_earlier_failure_does_not_count_for_this_one() -> None:
    cluster = reached("train")
    break_store(cluster, "train")
    wait(cluster)
    probe = cluster.stage_job("collect")
    probed(cluster)
    cluster.objects["Job", probe["metadata"]["name"]] = probe
    cluster.now += timedelta(seconds=30)
    break_store(cluster, "train")
    assert not cluster.has_stage_job("collect")


@pytest.mark.parametrize("reason", [FailureReason.STORE_UNAVAILABLE, FailureReason.INVALID_CREDENTIALS])
def test_a_stage_without_devices_is_its_own_check(reason: str) -> None:
    cluster = reached("preflight")
    waited = []
    for _ in range(3):
        cluster.end("preflight", failed("preflight", reason, AWAY).to_json(), exit_code=12)
        cluster.settle()
        waited.append(wait(cluster))
        assert not cluster.has_stage_job("collect")
    assert waited == pytest.approx([60, 120, 240], rel=0.11)


def test_a_dataset_waits_longer_after_each_failure_too() -> None:
    cluster = reached("preflight")
    cluster.change("Dataset", DATASET, source={"uri": "configmap://tickets/more.jsonl"})
    cluster.settle()
    waited = []
    for _ in range(3):
        away = failed("prepare", "SourceNotFound", "not there", run=f"{DATASET_UID}-2")
        cluster.end("prepare", away.to_json(), exit_code=12)
        cluster.settle()
        seconds = cluster.plan("Dataset", DATASET).requeue_after
        assert seconds is not None
        waited.append(seconds)
        cluster.now += timedelta(seconds=seconds)
        cluster.settle()
    assert waited == pytest.approx([60, 120, 240], rel=0.11)


def test_a_store_failure_of_a_stage_with_devices_ends_its_job_at_the_first_pod() -> None:
    for stage, at_once in (("train", True), ("evaluate", True), ("prepare", False), ("preflight", False)):
        rules = pod_failure_policy(stage)["rules"]  # type: ignore[arg-type]
        final = next(rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob")
        assert (ExitCode.STORE_UNAVAILABLE.value in final) is at_once


def test_two_runs_of_one_store_do_not_come_back_at_the_same_moment() -> None:
    status = count_failure(None, "train", NOW)
    moments: set[datetime] = {due_at(status, f"run-{number}") for number in range(20)}
    assert len(moments) > 5
    assert due_at(status, JOB_UID) == due_at(status, JOB_UID)
