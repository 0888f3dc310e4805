# SPDX-License-Identifier: Apache-2.0
"""Runs that come back from a backup under another uid, and runs that are only made again."""

from copy import deepcopy
from datetime import datetime

from finetune_operator.manifests.labels import RECORDED_AT, RECORDED_RUN
from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, JOB
from tests.unit.operator.runsteps import ended, reached

NEW_UID = "99999999-0000-4000-8000-000000000001"


def saved(manifest: Manifest) -> Manifest:
    """As a backup without status keeps it: without what belongs to one object in one cluster."""
    kept = {key: deepcopy(value) for key, value in manifest.items() if key != "status"}
    own = ("uid", "generation", "creationTimestamp", "resourceVersion")
    kept["metadata"] = {key: value for key, value in kept["metadata"].items() if key not in own}
    return kept


def wiped() -> tuple[MemoryCluster, Manifest, Manifest]:
    """A cluster in which a run and its Checkpoint were lost, and what the backup has of them."""
    cluster = ended()
    run, checkpoint = (
        saved(cluster.objects[key]) for key in (("FineTuneJob", JOB), ("Checkpoint", CHECKPOINT))
    )
    cluster.remove("FineTuneJob", JOB)
    cluster.remove("Checkpoint", CHECKPOINT)
    run["metadata"]["uid"] = NEW_UID
    return cluster, run, checkpoint


def has_started_nothing(cluster: MemoryCluster) -> bool:
    return not any(job.startswith(JOB) for job in cluster.of("Job"))


def test_a_run_is_marked_when_its_checkpoints_are_recorded_and_not_before() -> None:
    assert RECORDED_RUN not in reached("train").objects["FineTuneJob", JOB]["metadata"].get("annotations", {})
    marked = reached("evaluate").objects["FineTuneJob", JOB]["metadata"]
    assert marked["annotations"][RECORDED_RUN].startswith(f"{marked['uid']}.")


def test_a_checkpoint_keeps_the_time_at_which_it_was_first_recorded() -> None:
    cluster, _, checkpoint = wiped()
    restored = cluster.add(checkpoint)["metadata"]
    recorded = datetime.fromisoformat(restored["annotations"][RECORDED_AT])
    assert recorded < datetime.fromisoformat(restored["creationTimestamp"])


def test_a_restored_run_adopts_its_checkpoints_and_trains_nothing() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(checkpoint)
    cluster.add(run)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Trained": "Restored", "Ready": "Restored"}
    assert [each.name for each in cluster.job(JOB).status.checkpoints] == [CHECKPOINT]
    assert has_started_nothing(cluster)


def test_a_run_that_is_restored_before_its_checkpoints_waits_for_them() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(run)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Reconciling": "CheckpointNotFound"}
    assert has_started_nothing(cluster)
    cluster.add(checkpoint)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Trained": "Restored", "Ready": "Restored"}
    assert has_started_nothing(cluster)


def test_a_run_restored_without_its_checkpoints_is_trained_again_when_its_annotation_is_removed() -> None:
    cluster, run, _ = wiped()
    cluster.add(run)
    cluster.settle()
    said = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert said is not None
    assert f"kubectl annotate finetunejob {JOB} {RECORDED_RUN}- -n team" in said["message"]
    del cluster.objects["FineTuneJob", JOB]["metadata"]["annotations"][RECORDED_RUN]
    cluster.settle()
    assert not has_started_nothing(cluster)


def test_a_run_that_was_made_again_from_its_manifest_adopts_nothing() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(checkpoint)
    del run["metadata"]["annotations"]
    cluster.add(run)
    cluster.settle()
    assert "Trained" not in cluster.states("FineTuneJob", JOB)
    assert not has_started_nothing(cluster)


def test_an_annotation_that_was_copied_to_another_spec_is_ignored() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(checkpoint)
    run["spec"]["hyperparameters"] = {"learningRate": 0.01}
    cluster.add(run)
    cluster.settle()
    assert "Trained" not in cluster.states("FineTuneJob", JOB)


def test_an_annotation_that_was_copied_to_another_name_is_ignored() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(checkpoint)
    run["metadata"]["name"] = "tickets-v2"
    cluster.add(run)
    cluster.settle()
    assert "Trained" not in cluster.states("FineTuneJob", "tickets-v2")


def test_suspending_a_run_makes_it_no_other() -> None:
    cluster, run, checkpoint = wiped()
    cluster.add(checkpoint)
    run["spec"] |= {"suspend": True, "childrenTTLSeconds": 5}
    cluster.add(run)
    cluster.settle()
    assert cluster.states("FineTuneJob", JOB) == {"Trained": "Restored", "Ready": "Restored"}


def test_a_restored_run_takes_the_adopted_records_along_when_it_is_deleted() -> None:
    cluster = ended(deletionPolicy="Delete", promotion={"mode": "Manual"})
    run = saved(cluster.objects["FineTuneJob", JOB])
    cluster.remove("FineTuneJob", JOB)
    run["metadata"]["uid"] = NEW_UID
    cluster.add(run)
    cluster.settle()
    cluster.delete("FineTuneJob", JOB)
    cluster.reconcile("FineTuneJob", JOB)
    assert "deletionTimestamp" in cluster.objects["Checkpoint", CHECKPOINT]["metadata"]
