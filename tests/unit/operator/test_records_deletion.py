# SPDX-License-Identifier: Apache-2.0
"""Deletion of a record with `deletionPolicy: Delete`, and of its content in the store."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.api.meta import ObjectMeta, Resource
from finetune_operator.manifests.labels import FINALIZER, STORE, stage_job_name
from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    JOB,
    ROWS,
    VERSION,
    WEIGHTS,
    finetunejob,
    prepared,
    prerequisites,
    trained,
)
from tests.unit.operator.runsteps import delete_run, ended, reached

WEIGHTS_FOLDER = f"pvc://artifacts/checkpoints/{'c' * 64}"
RECORDS = [
    pytest.param("Checkpoint", CHECKPOINT, "checkpoints", WEIGHTS, id="Checkpoint"),
    pytest.param("DatasetVersion", VERSION, "datasets", ROWS, id="DatasetVersion"),
]


def finalizers(cluster: MemoryCluster, kind: str, name: str) -> list[str]:
    found: list[str] = cluster.objects[kind, name]["metadata"].get("finalizers", [])
    return found


def deleted(kind: str, name: str) -> MemoryCluster:
    """A finished run, one of whose records has the policy Delete and is being deleted."""
    cluster = ended()
    cluster.change(kind, name, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete(kind, name)
    cluster.reconcile(kind, name)
    return cluster


def deleted_checkpoint(*others: Manifest) -> MemoryCluster:
    cluster = ended()
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.settle()
    for other in others:
        cluster.add(other)
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    return cluster


def says(cluster: MemoryCluster) -> str:
    """The last event."""
    event = cluster.events[-1]
    return f"{event.type} {event.reason!s}: {event.message}"


@pytest.mark.parametrize(("kind", "name", "folder", "digest"), RECORDS)
def test_the_policy_puts_the_finalizer_on_a_record_and_takes_it_off(
    kind: str, name: str, folder: str, digest: str
) -> None:
    cluster = ended()
    assert finalizers(cluster, kind, name) == []
    cluster.objects[kind, name]["metadata"]["finalizers"] = ["example.com/theirs"]
    cluster.change(kind, name, deletionPolicy="Delete")
    cluster.settle()
    assert finalizers(cluster, kind, name) == ["example.com/theirs", FINALIZER]
    cluster.change(kind, name, deletionPolicy="Retain")
    cluster.settle()
    assert finalizers(cluster, kind, name) == ["example.com/theirs"]


def test_records_of_a_run_with_the_policy_have_the_finalizer_from_the_first() -> None:
    cluster = reached("train")
    cluster.change("FineTuneJob", JOB, deletionPolicy="Delete")
    cluster.succeed("train", trained(), after=10)
    plan = cluster.plan("FineTuneJob", JOB)
    (record,) = [create.manifest for create in plan.create if create.manifest["kind"] == "Checkpoint"]
    assert record["spec"]["deletionPolicy"] == "Delete"
    assert record["metadata"]["finalizers"] == [FINALIZER]
    assert plan.metadata is not None
    assert plan.metadata["finalizers"] == [FINALIZER]


@pytest.mark.parametrize(("kind", "name", "folder", "digest"), RECORDS)
def test_the_content_is_removed_by_a_job_and_then_the_record_goes(
    kind: str, name: str, folder: str, digest: str
) -> None:
    cluster = deleted(kind, name)
    config = cluster.config("cleanup")
    assert (config.artifact.kind, config.artifact.digest) == (folder, digest)
    assert config.store.uri == "pvc://artifacts"
    assert cluster.states(kind, name)["Reconciling"] == "CleaningUp"
    cluster.settle()
    assert (kind, name) in cluster.objects
    cluster.start("cleanup", after=1)
    cluster.settle()
    cluster.end("cleanup", "", after=1)
    cluster.reconcile(kind, name)
    assert (kind, name) not in cluster.objects
    assert cluster.of("Job").keys().isdisjoint({f"{name}-cleanup"})
    assert says(cluster) == (
        f"Normal ContentRemoved: pvc://artifacts/{folder}/{digest.removeprefix('sha256:')} is removed"
    )


@pytest.mark.parametrize(
    ("owner", "job"),
    [
        # A name that is shortened has a longer hash.
        ("tickets-v1-0b5e7-40-cccccccc", "tickets-v1-0b5e7-40-cccccccc-cleanup-d2237"),
        ("n" * 49, f"{'n' * 49}-cleanup-d2237"),
        ("n" * 50, f"{'n' * 42}-cleanup-d223781ef8ea"),
        ("n" * 41 + "-" + "m" * 20, f"{'n' * 41}-cleanup-d223781ef8ea"),
    ],
)
def test_the_job_of_a_record_has_a_name_that_a_label_of_its_pods_can_hold(owner: str, job: str) -> None:
    record = Resource(kind="Checkpoint", metadata=ObjectMeta(name=owner, uid="uid"))
    assert stage_job_name(record, "cleanup", "pvc://artifacts") == job
    assert len(job) <= 63


def test_a_record_with_retain_leaves_its_content_and_goes_at_once() -> None:
    cluster = ended()
    cluster.delete("Checkpoint", CHECKPOINT)
    assert ("Checkpoint", CHECKPOINT) not in cluster.objects
    assert not cluster.has_stage_job("cleanup")


def test_a_cleanup_is_not_taken_away_when_its_record_is_deleted_in_the_foreground() -> None:
    cluster = deleted_checkpoint()
    assert cluster.stage_job("cleanup")["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] is False


def other(name: str, namespace: str = "team", uri: str = WEIGHTS_FOLDER, **metadata: Any) -> Manifest:
    """Another Checkpoint of the same digest, whose weights are in the same folder."""
    record = ended().objects["Checkpoint", CHECKPOINT]
    return {
        **record,
        "metadata": {"name": name, "namespace": namespace, "labels": {}, **metadata},
        "spec": {**record["spec"], "uri": uri, "deletionPolicy": "Retain"},
    }


@pytest.mark.parametrize(
    ("record", "stays"),
    [
        pytest.param(other("twin"), True, id="in the same store"),
        pytest.param(other("twin", namespace="neighbours"), False, id="in another namespace's claim"),
        pytest.param(
            other("twin", uri=f"pvc://elsewhere/checkpoints/{'c' * 64}"), False, id="in another store"
        ),
        pytest.param(
            other("twin", deletionTimestamp="2030-01-02T03:00:00Z", finalizers=["example.com/theirs"]),
            False,
            id="on its way out too",
        ),
    ],
)
def test_content_that_another_record_stands_for_stays(record: Manifest, stays: bool) -> None:
    cluster = deleted_checkpoint(record)
    assert (("Checkpoint", CHECKPOINT) not in cluster.objects) is stays
    assert cluster.has_stage_job("cleanup") is not stays
    if stays:
        assert says(cluster) == (f"Normal ContentKept: {WEIGHTS_FOLDER} stays: twin needs it too")


def endpoint(model: Manifest, status: Manifest | None = None) -> Manifest:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "desk"},
        "spec": {
            "baseModel": {"uri": "pvc://models/gemma"},
            "models": [{"name": "router", **model}],
            "compute": {"profile": "missing"},
        },
        "status": status or {"observedGeneration": -1},
    }


@pytest.mark.parametrize(
    "user",
    [
        pytest.param(
            endpoint(
                {"follow": {"modelLine": "others"}},
                {"models": [{"name": "router", "checkpoint": CHECKPOINT, "digest": WEIGHTS}]},
            ),
            id="serves it",
        ),
        pytest.param(endpoint({"pin": {"checkpoint": CHECKPOINT}}), id="pins its name"),
        pytest.param(endpoint({"pin": {"uri": WEIGHTS_FOLDER, "digest": WEIGHTS}}), id="pins its digest"),
    ],
)
def test_weights_of_an_endpoint_wait_until_it_lets_them_go(user: Manifest) -> None:
    cluster = deleted_checkpoint(user)
    assert cluster.states("Checkpoint", CHECKPOINT)["Reconciling"] == "InUse"
    said = cluster.condition("Checkpoint", CHECKPOINT, "Reconciling")
    assert said is not None
    assert "when InferenceDeployment desk no longer needs it" in said["message"]
    assert not cluster.has_stage_job("cleanup")
    cluster.remove("InferenceDeployment", "desk")
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.has_stage_job("cleanup")


def test_rows_of_a_run_that_has_not_ended_wait_for_its_end() -> None:
    cluster = reached("train")
    cluster.change("DatasetVersion", VERSION, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("DatasetVersion", VERSION)
    plan = cluster.reconcile("DatasetVersion", VERSION)
    assert cluster.states("DatasetVersion", VERSION)["Reconciling"] == "InUse"
    assert plan.requeue_after == 60
    cluster.remove("FineTuneJob", JOB)
    cluster.reconcile("DatasetVersion", VERSION)
    assert cluster.has_stage_job("cleanup")


def test_a_cleanup_that_fails_says_why_and_is_tried_again() -> None:
    cluster = deleted_checkpoint()
    first = cluster.stage_job("cleanup")["metadata"]["uid"]
    cluster.start("cleanup", after=1)
    cluster.end("cleanup", "StoreUnavailable: store: read-only file system", exit_code=12)
    plan = cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.states("Checkpoint", CHECKPOINT)["Reconciling"] == "CleanupFailed"
    said = cluster.condition("Checkpoint", CHECKPOINT, "Reconciling")
    assert said is not None
    assert "read-only file system" in said["message"]
    assert "set its spec.deletionPolicy to Retain" in said["message"]
    assert says(cluster).startswith("Warning Blocked")
    assert plan.requeue_after == 300
    cluster.now += timedelta(seconds=300)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.stage_job("cleanup")["metadata"]["uid"] != first


def cleaning(cluster: MemoryCluster) -> tuple[str, str]:
    cluster.reconcile("Checkpoint", CHECKPOINT)
    condition = cluster.condition("Checkpoint", CHECKPOINT, "Reconciling")
    assert condition is not None
    return condition["reason"], condition["message"]


@pytest.mark.parametrize("what", ["pod", "Job"])
def test_a_cleanup_on_a_node_that_is_gone_says_so(what: str) -> None:
    cluster = deleted_checkpoint()
    pod = cluster.pod("cleanup", {"running": {"startedAt": at(cluster.now)}})
    pod["spec"] = {**pod["spec"], "nodeName": "node-1"}
    pod["metadata"]["deletionTimestamp"] = at(cluster.now)
    if what == "Job":
        cluster.stage_job("cleanup")["metadata"]["deletionTimestamp"] = at(cluster.now)
    assert cleaning(cluster)[0] == "CleaningUp"
    assert cluster.plan("Checkpoint", CHECKPOINT).requeue_after == 31
    cluster.now += timedelta(seconds=31)
    reason, message = cleaning(cluster)
    assert reason == "NodeLost"
    assert "kubectl delete node node-1" in message


def test_a_cleanup_pod_that_does_not_start_says_why() -> None:
    cluster = deleted_checkpoint()
    assert cleaning(cluster) == (
        "CleaningUp",
        f"{WEIGHTS_FOLDER} is being removed: the cleanup pod is being created",
    )
    cluster.pod("cleanup", {"waiting": {"reason": "ErrImagePull", "message": "denied"}})
    reason, message = cleaning(cluster)
    assert reason == "ImageUnavailable"
    assert (
        f"{WEIGHTS_FOLDER} is being removed: image registry.example/trainer:1 of the cleanup pod" in message
    )


def test_a_cleanup_that_needs_more_memory_is_not_told_of_a_field_that_no_profile_has() -> None:
    cluster = deleted_checkpoint()
    cluster.start("cleanup")
    cluster.end("cleanup", "", exit_code=137, reason="OOMKilled")
    reason, message = cleaning(cluster)
    assert reason == "CleanupFailed"
    assert "its limit of 256Mi: raise its memory limit" in message


def test_a_missing_claim_is_named() -> None:
    cluster = ended()
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.settle()
    cluster.remove("PersistentVolumeClaim", "artifacts")
    cluster.delete("Checkpoint", CHECKPOINT)
    plan = cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.states("Checkpoint", CHECKPOINT)["Reconciling"] == "StoreNotFound"
    assert "PersistentVolumeClaim artifacts does not exist" in says(cluster)
    assert plan.requeue_after == 300


@pytest.mark.parametrize("obstacle", ["a user", "a store"])
def test_after_a_day_the_record_goes_and_an_event_names_the_folder_that_stays(obstacle: str) -> None:
    cluster = deleted_checkpoint(*[endpoint({"pin": {"checkpoint": CHECKPOINT}})] * (obstacle == "a user"))
    cluster.now += timedelta(hours=23, minutes=59, seconds=30)
    plan = cluster.reconcile("Checkpoint", CHECKPOINT)
    assert plan.requeue_after == 30
    cluster.now += timedelta(seconds=30)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert ("Checkpoint", CHECKPOINT) not in cluster.objects
    assert says(cluster) == (
        f"Warning ContentKept: {WEIGHTS_FOLDER} stays: it could not be removed within 24 hours;"
        " remove it by hand"
    )


def test_retain_lets_a_record_go_that_waits() -> None:
    cluster = deleted_checkpoint(endpoint({"pin": {"checkpoint": CHECKPOINT}}))
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Retain")
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert ("Checkpoint", CHECKPOINT) not in cluster.objects


@pytest.mark.parametrize(("kind", "name", "folder", "digest"), RECORDS)
def test_a_namespace_that_goes_is_not_held_up(kind: str, name: str, folder: str, digest: str) -> None:
    cluster = deleted(kind, name)
    cluster.is_terminating = True
    cluster.remove("Job", cluster.stage_job("cleanup")["metadata"]["name"])
    plan = cluster.reconcile(kind, name)
    assert plan.create == ()
    assert (kind, name) not in cluster.objects


def test_a_finalizer_of_somebody_else_is_not_ours_to_wait_for() -> None:
    cluster = deleted_checkpoint()
    cluster.objects["Checkpoint", CHECKPOINT]["metadata"]["finalizers"] = ["example.com/theirs"]
    assert cluster.plan("Checkpoint", CHECKPOINT).metadata is None


@pytest.mark.parametrize("store", ["", "pvc://", "nowhere"])
def test_a_record_of_which_no_store_is_known_goes_at_once(store: str) -> None:
    cluster = ended()
    record = cluster.objects["DatasetVersion", VERSION]
    cluster.change("DatasetVersion", VERSION, deletionPolicy="Delete")
    cluster.settle()
    record["metadata"]["annotations"] = {STORE: store}
    record["status"]["locations"] = []
    cluster.delete("DatasetVersion", VERSION)
    cluster.reconcile("DatasetVersion", VERSION)
    assert ("DatasetVersion", VERSION) not in cluster.objects
    assert says(cluster) == "Normal ContentKept: its content stays: no store is known"


def test_a_bucket_is_the_same_one_in_every_namespace() -> None:
    uri = f"s3://artifacts/team/checkpoints/{'c' * 64}"
    cluster = ended()
    cluster.objects["Checkpoint", CHECKPOINT]["spec"] |= {"uri": uri, "deletionPolicy": "Delete"}
    cluster.settle()
    cluster.add(other("twin", namespace="neighbours", uri=uri))
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert says(cluster) == f"Normal ContentKept: {uri} stays: a record in another namespace needs it too"


@pytest.mark.parametrize(("store", "waits"), [("s3://artifacts/team", True), ("pvc://artifacts", False)])
def test_a_bucket_keeps_its_content_while_a_namespace_that_may_share_it_is_not_listed(
    store: str, waits: bool
) -> None:
    uri = f"{store}/checkpoints/{'c' * 64}"
    cluster = ended()
    cluster.objects["Checkpoint", CHECKPOINT]["spec"] |= {"uri": uri, "deletionPolicy": "Delete"}
    cluster.settle()
    cluster.facts = replace(cluster.facts, unlisted=("neighbours",))
    cluster.delete("Checkpoint", CHECKPOINT)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert cluster.has_stage_job("cleanup") is not waits
    if waits:
        reconciling = cluster.condition("Checkpoint", CHECKPOINT, "Reconciling")
        assert reconciling is not None
        assert reconciling["reason"] == "Forbidden"
        assert "can list every namespace that it watches" in reconciling["message"]
        cluster.facts = replace(cluster.facts, unlisted=())
        cluster.reconcile("Checkpoint", CHECKPOINT)
        assert cluster.has_stage_job("cleanup")


def test_rows_stay_for_a_dataset_that_may_come_to_them_again() -> None:
    cluster = ended()
    cluster.change("DatasetVersion", VERSION, deletionPolicy="Delete")
    cluster.settle()
    cluster.change("Dataset", DATASET, onInvalidRows="Drop")
    cluster.delete("DatasetVersion", VERSION)
    cluster.reconcile("DatasetVersion", VERSION)
    assert ("DatasetVersion", VERSION) not in cluster.objects
    assert not cluster.has_stage_job("cleanup")
    assert "Dataset tickets is being prepared" in says(cluster)


def test_rows_stay_for_a_dataset_whose_source_is_looked_at_again() -> None:
    cluster = ended()
    cluster.change("DatasetVersion", VERSION, deletionPolicy="Delete")
    cluster.settle()
    cluster.annotate("Dataset", DATASET, refresh_requested="now")
    cluster.settle()
    cluster.delete("DatasetVersion", VERSION)
    cluster.reconcile("DatasetVersion", VERSION)
    assert not cluster.has_stage_job("cleanup")
    assert "Dataset tickets is being prepared" in says(cluster)


def test_rows_stay_for_a_run_that_was_made_again_and_may_come_to_them_again() -> None:
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    cluster = MemoryCluster(*prerequisites(), finetunejob(dataset=own_rows, deletionPolicy="Delete"))
    cluster.settle()
    cluster.succeed("prepare", prepared(run=cluster.job(JOB).uid))
    cluster.settle()
    delete_run(cluster)
    again = finetunejob(dataset=own_rows)
    again["metadata"]["uid"] = "22222222-0000-4000-8000-000000000001"
    cluster.add(again)
    version = f"{JOB}-data-{'d' * 12}"
    cluster.reconcile("DatasetVersion", version)
    assert ("DatasetVersion", version) not in cluster.objects
    assert f"FineTuneJob {JOB} is being prepared" in says(cluster)
