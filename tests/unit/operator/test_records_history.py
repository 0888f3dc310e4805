# SPDX-License-Identifier: Apache-2.0
"""History limits: which records are deleted, and which stay regardless of the limit."""

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest

from finetune_client.local.cluster import at
from finetune_operator.api.labels import OPERATOR
from finetune_operator.manifests.labels import FINALIZER, RECORDED_AT
from finetune_operator.plan import Manifest, Plan
from tests.unit.operator.memorycluster import NOW, MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, DATASET, VERSION, finetunejob
from tests.unit.operator.runsteps import ended

OURS = [{"manager": OPERATOR}, {"manager": OPERATOR, "subresource": "status"}]
OLD = "old"


def history(kind: str, *, limit: int | None = 1, **old: Any) -> MemoryCluster:
    """A finished run with its records and one older record; `old` sets fields of its spec."""
    cluster = ended()
    name = CHECKPOINT if kind == "Checkpoint" else VERSION
    if kind == "Checkpoint":
        cluster.change("ComputeProfile", "cpu", limits={"checkpoints": limit})
    else:
        cluster.change("Dataset", DATASET, versionHistoryLimit=limit)
        cluster.objects["Dataset", DATASET]["status"]["observedGeneration"] = 2
    older = deepcopy(cluster.objects[kind, name])
    created = at(NOW - timedelta(days=1))
    older["metadata"] |= {"name": OLD, "uid": "old-uid", "creationTimestamp": created, "managedFields": OURS}
    older["metadata"].get("annotations", {}).pop(RECORDED_AT, None)
    older["spec"] |= {"digest": f"sha256:{'0' * 64}", **old}
    if kind == "Checkpoint":
        older["spec"]["step"] = 20
        older["status"].pop("promotedAt", None)
    cluster.add(older)
    return cluster


def deleted(cluster: MemoryCluster, kind: str, name: str = OLD) -> bool:
    plan: Plan = cluster.plan(kind, name)
    return [each.manifest["metadata"]["name"] for each in plan.delete] == [name]


@pytest.mark.parametrize("kind", ["Checkpoint", "DatasetVersion"])
def test_a_record_beyond_the_limit_is_deleted_and_an_event_says_why(kind: str) -> None:
    cluster = history(kind)
    plan = cluster.plan(kind, OLD)
    (delete,) = plan.delete
    assert delete.manifest["metadata"]["uid"] == "old-uid"
    (event,) = plan.events
    assert (event.type, event.reason) == ("Normal", "HistoryLimitExceeded")
    assert event.message.startswith(f"{kind} {OLD} is deleted: 1 newer ones exist, and ")
    assert event.message.endswith("its content stays in the store")


@pytest.mark.parametrize("kind", ["Checkpoint", "DatasetVersion"])
def test_without_a_limit_and_within_it_nothing_is_deleted(kind: str) -> None:
    assert not deleted(history(kind, limit=None), kind)
    assert not deleted(history(kind, limit=2), kind)


@pytest.mark.parametrize(("kind", "name"), [("Checkpoint", CHECKPOINT), ("DatasetVersion", VERSION)])
def test_the_newest_stays(kind: str, name: str) -> None:
    assert not deleted(history(kind), kind, name)


def test_a_record_with_the_policy_delete_is_cleaned_up_before_it_goes() -> None:
    cluster = history("Checkpoint", deletionPolicy="Delete")
    cluster.objects["Checkpoint", OLD]["metadata"]["finalizers"] = [FINALIZER]
    assert cluster.plan("Checkpoint", OLD).events[0].message.endswith("its content is removed")
    cluster.reconcile("Checkpoint", OLD)
    cluster.reconcile("Checkpoint", OLD)
    assert "cleanup" in next(job for job in cluster.of("Job") if job.startswith(OLD))


def edited(cluster: MemoryCluster) -> None:
    cluster.objects["Checkpoint", OLD]["metadata"]["managedFields"] = [*OURS, {"manager": "kubectl-edit"}]


def of_nobody(cluster: MemoryCluster) -> None:
    cluster.objects["Checkpoint", OLD]["metadata"]["managedFields"] = []


def promoted(cluster: MemoryCluster) -> None:
    cluster.objects["Checkpoint", OLD]["status"]["promotedAt"] = at(NOW - timedelta(hours=1))


def served_by(model: Manifest) -> Manifest:
    spec = {"baseModel": {"uri": "pvc://models/gemma"}, "models": [model]}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "desk"},
        "spec": spec,
    }


def pinned(cluster: MemoryCluster) -> None:
    cluster.add(served_by({"name": "m", "pin": {"checkpoint": OLD}}))


def served(cluster: MemoryCluster) -> None:
    digest = cluster.objects["Checkpoint", OLD]["spec"]["digest"]
    status = {"models": [{"name": "m", "checkpoint": OLD, "digest": digest}]}
    cluster.add({**served_by({"name": "m", "follow": {"modelLine": "another"}}), "status": status})


def a_parent(cluster: MemoryCluster) -> None:
    cluster.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]["parentCheckpoint"] = OLD


def continued_from(cluster: MemoryCluster) -> None:
    job = finetunejob(baseModel={"checkpoint": OLD})
    cluster.add({**job, "metadata": {"name": "next", "uid": "next"}})


def without_its_run(cluster: MemoryCluster) -> None:
    lineage = cluster.objects["Checkpoint", OLD]["spec"]["lineage"]
    lineage["job"] = {"name": "gone", "uid": "gone"}


def of_a_run_under_way(cluster: MemoryCluster) -> None:
    (job,) = cluster.of("FineTuneJob").values()
    job["status"]["conditions"] = []


def the_judged_one(cluster: MemoryCluster) -> None:
    (job,) = cluster.of("FineTuneJob").values()
    job["status"]["evaluation"]["checkpoint"] = OLD


@pytest.mark.parametrize(
    "make",
    [
        edited,
        of_nobody,
        promoted,
        pinned,
        served,
        a_parent,
        continued_from,
        without_its_run,
        of_a_run_under_way,
        the_judged_one,
    ],
)
def test_a_checkpoint_that_counts_for_something_stays(make: Callable[[MemoryCluster], None]) -> None:
    cluster = history("Checkpoint")
    make(cluster)
    assert not deleted(cluster, "Checkpoint")


def test_the_last_checkpoint_of_a_run_stays_however_many_newer_ones_the_line_has() -> None:
    cluster = history("Checkpoint")
    other = deepcopy(cluster.of("FineTuneJob").popitem()[1])
    other["metadata"] |= {"name": "earlier", "uid": "earlier-uid"}
    other["status"] |= {"evaluation": None, "checkpoints": []}
    cluster.add(other)
    lineage = cluster.objects["Checkpoint", OLD]["spec"]["lineage"]
    lineage["job"] = {"name": "earlier", "uid": "earlier-uid"}
    assert not deleted(cluster, "Checkpoint")
    final: Manifest = deepcopy(cluster.objects["Checkpoint", OLD])
    final["metadata"] |= {"name": "final", "uid": "final-uid"}
    final["spec"] |= {"step": 30, "digest": f"sha256:{'1' * 64}"}
    cluster.add(final)
    assert deleted(cluster, "Checkpoint")
    assert not deleted(cluster, "Checkpoint", "final")


def test_a_version_that_a_checkpoint_was_trained_on_stays() -> None:
    cluster = history("DatasetVersion")
    cluster.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]["datasetVersion"] = OLD
    assert not deleted(cluster, "DatasetVersion")


def test_a_version_that_an_unfinished_run_names_stays() -> None:
    cluster = history("DatasetVersion")
    job = finetunejob(dataset={"ref": {"name": DATASET, "version": OLD}})
    cluster.add({**job, "metadata": {"name": "next", "uid": "next"}})
    assert not deleted(cluster, "DatasetVersion")


def test_the_latest_version_of_a_dataset_stays_although_others_were_made_later() -> None:
    """New rows that equal those of an earlier version make that version the latest again."""
    cluster = history("DatasetVersion")
    cluster.objects["Dataset", DATASET]["status"]["latestVersion"] = OLD
    assert not deleted(cluster, "DatasetVersion")
