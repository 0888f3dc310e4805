# SPDX-License-Identifier: Apache-2.0
"""What becomes of a run's folder in the store when the run is deleted with `deletionPolicy: Delete`."""

from datetime import timedelta

from finetune_client.local.cluster import at
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, JOB, JOB_UID
from tests.unit.operator.runsteps import ended, reached

FOLDER = f"pvc://artifacts/runs/{JOB_UID}"


def deleted(cluster: MemoryCluster) -> MemoryCluster:
    cluster.delete("FineTuneJob", JOB)
    cluster.reconcile("FineTuneJob", JOB)
    return cluster


def is_there(cluster: MemoryCluster) -> bool:
    return ("FineTuneJob", JOB) in cluster.objects


def test_the_folder_goes_before_the_run_and_the_records_do_not_wait_for_it() -> None:
    cluster = deleted(ended(deletionPolicy="Delete", promotion={"mode": "Manual"}))
    config = cluster.config("cleanup")
    assert (config.run, config.artifact, config.store.uri) == (JOB_UID, None, "pvc://artifacts")
    assert "deletionTimestamp" in cluster.objects["Checkpoint", CHECKPOINT]["metadata"]
    assert is_there(cluster)
    cluster.end("cleanup", "")
    cluster.reconcile("FineTuneJob", JOB)
    assert not is_there(cluster)


def test_nothing_is_removed_while_a_pod_of_the_run_may_write() -> None:
    cluster = reached("train", deletionPolicy="Delete")
    cluster.start("train")
    cluster.delete("FineTuneJob", JOB)
    plan = cluster.plan("FineTuneJob", JOB)
    assert [delete.propagation for delete in plan.delete] == ["Foreground"]
    cluster.stage_job("train")["metadata"]["deletionTimestamp"] = at(cluster.now)
    cluster.reconcile("FineTuneJob", JOB)
    assert not cluster.has_stage_job("cleanup")
    reconciling = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert reconciling is not None
    assert "waiting for the run's pods to end" in reconciling["message"]
    cluster.remove("Job", cluster.stage_job("train")["metadata"]["name"])
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.config("cleanup").run == JOB_UID


def test_a_run_whose_claim_is_gone_goes_at_once() -> None:
    cluster = ended(deletionPolicy="Delete")
    cluster.remove("PersistentVolumeClaim", "artifacts")
    deleted(cluster)
    assert not is_there(cluster)


def test_a_run_that_never_began_goes_at_once() -> None:
    cluster = reached("preflight", deletionPolicy="Delete")
    cluster.objects["FineTuneJob", JOB]["status"] = {"observedGeneration": -1}
    deleted(cluster)
    assert not is_there(cluster)


def test_in_a_namespace_that_is_being_deleted_the_folder_is_left_alone() -> None:
    cluster = ended(deletionPolicy="Delete")
    cluster.is_terminating = True
    deleted(cluster)
    assert not is_there(cluster)
    assert not cluster.has_stage_job("cleanup")


def test_a_folder_that_cannot_be_removed_holds_the_run_for_a_day_and_no_longer() -> None:
    cluster = deleted(ended(deletionPolicy="Delete"))
    first = cluster.stage_job("cleanup")["metadata"]["uid"]
    cluster.end("cleanup", "StoreUnavailable: read-only", exit_code=12)
    cluster.reconcile("FineTuneJob", JOB)
    assert "StoreUnavailable: read-only" in cluster.events[-2].message + cluster.events[-1].message
    cluster.now += timedelta(seconds=300)
    cluster.reconcile("FineTuneJob", JOB)
    cluster.reconcile("FineTuneJob", JOB)
    assert cluster.stage_job("cleanup")["metadata"]["uid"] != first
    cluster.now += timedelta(hours=24)
    cluster.reconcile("FineTuneJob", JOB)
    assert not is_there(cluster)
    kept = f"{FOLDER} stays in the store: the operator could not remove it"
    assert any(kept in event.message for event in cluster.events)


def test_a_run_with_retain_leaves_its_folder() -> None:
    cluster = ended()
    cluster.delete("FineTuneJob", JOB)
    assert not is_there(cluster)
