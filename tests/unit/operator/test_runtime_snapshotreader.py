# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the caches for passes."""

from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.labels import OWNER_KIND, RUN
from finetune_operator.engine.resources import (
    DEPLOYMENT,
    JOB,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
)
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, Snapshot
from finetune_operator.reconcile.records.retention import versions_of
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.snapshots import SnapshotReader

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = OperatorFacts(namespace="finetune-system", trainer_image="trainer:1", nonce_key="0f")
OWNER = "uid-run"


def obj(kind: str, name: str, *, uid: str = "", version: int = 1, **more: Any) -> Manifest:
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": kind, "metadata": metadata, **more}


def run() -> Manifest:
    spec = {
        "modelLine": "line",
        "baseModel": {"uri": "pvc://models/tiny"},
        "dataset": {"ref": {"name": "tickets"}},
    }
    return obj("FineTuneJob", "run", uid=OWNER, spec=spec)


def child(kind: str, name: str, controller: tuple[str, str, str], run: str = OWNER) -> Manifest:
    made = obj(kind, name)
    owner_kind, owner_name, owner_uid = controller
    reference = {"kind": owner_kind, "name": owner_name, "uid": owner_uid, "controller": True}
    made["metadata"] |= {"ownerReferences": [reference], "labels": {RUN: run}}
    return made


def checkpoint(name: str, model: str = "line", version: int = 1) -> Manifest:
    digest = "sha256:" + "a" * 64
    hyperparameters = {
        "epochs": 1,
        "learningRate": 0.001,
        "batchSize": 1,
        "warmupRatio": 0.05,
        "scheduler": "Linear",
        "weightDecay": 0,
        "maxSequenceLength": 64,
        "seed": 0,
        "totalSteps": 1,
        "saveEverySteps": 1,
    }
    lineage = {
        "baseModel": {"uri": "pvc://models/tiny", "digest": digest},
        "datasetVersion": "tickets-1",
        "job": {"name": "run", "uid": OWNER},
        "method": {"objective": "SFT", "type": "LoRA"},
        "adapter": {"r": 16},
        "hyperparameters": hyperparameters,
        "trainerImage": "trainer:1",
    }
    spec = {
        "modelLine": model,
        "digest": digest,
        "type": "Adapter",
        "step": 1,
        "epoch": 1,
        "uri": "pvc://artifacts/checkpoints/a",
        "lineage": lineage,
    }
    return obj("Checkpoint", name, version=version, spec=spec)


class Scene:
    """Caches with one run in them."""

    def __init__(self) -> None:
        self.caches = Caches()
        self.reader = SnapshotReader(self.caches)
        self.caches.kinds["FineTuneJob"].put(run())

    def snapshot(self) -> Snapshot:
        resource = self.reader.resource(Key("FineTuneJob", "team", "run"))
        assert resource is not None
        return self.reader.snapshot(
            resource, now=NOW, facts=FACTS, entropy=b"", service_accounts=frozenset(), progress=None
        )


def test_only_children_by_uid_are_seen() -> None:
    scene = Scene()
    scene.caches.children[JOB].put(child("Job", "ours", ("FineTuneJob", "run", OWNER)))
    scene.caches.children[JOB].put(child("Job", "predecessors", ("FineTuneJob", "run", "uid-earlier")))
    assert set(scene.snapshot().children[JOB]) == {"ours"}


def test_objects_of_another_namespace_are_no_children_whatever_owner_they_name() -> None:
    """Their editor may know the uids of a run and its Jobs, and gives them its names."""
    scene = Scene()
    forged = [
        (JOB, child("Job", "train", ("FineTuneJob", "run", OWNER))),
        (POD, child("Pod", "train-abc", ("Job", "train", "uid-train"))),
        (POD, child("Pod", "orphan", ("Job", "preflight", "uid-of-a-deleted-job"))),
        (SERVICE, child("Service", "run", ("FineTuneJob", "run", OWNER))),
    ]
    for type_, each in forged:
        each["metadata"] |= {"namespace": "elsewhere", "uid": f"forged-{each['metadata']['name']}"}
        scene.caches.children[type_].put(each)
    scene.caches.children[JOB].put(child("Job", "train", ("FineTuneJob", "run", OWNER)))
    snapshot = scene.snapshot()
    assert snapshot.children[JOB]["train"]["metadata"]["namespace"] == "team"
    assert (snapshot.children[POD], snapshot.children[SERVICE], snapshot.orphans) == ({}, {}, {})


def test_policies_and_budgets_are_children_by_uid_too() -> None:
    scene = Scene()
    for type_, kind in ((NETWORK_POLICY, "NetworkPolicy"), (POD_DISRUPTION_BUDGET, "PodDisruptionBudget")):
        store = scene.caches.children[type_]
        store.put(child(kind, "ours", ("FineTuneJob", "run", OWNER)))
        store.put(child(kind, "predecessors", ("FineTuneJob", "run", "uid-earlier")))
    snapshot = scene.snapshot()
    assert set(snapshot.children[NETWORK_POLICY]) == set(snapshot.children[POD_DISRUPTION_BUDGET]) == {"ours"}


def test_a_pod_belongs_to_its_jobs_owner() -> None:
    scene = Scene()
    scene.caches.children[JOB].put(child("Job", "train", ("FineTuneJob", "run", OWNER)))
    scene.caches.children[POD].put(child("Pod", "train-abc", ("Job", "train", "uid-train")))
    assert set(scene.snapshot().children[POD]) == {"train-abc"}


def test_a_pod_that_only_carries_our_labels_is_not_believed() -> None:
    scene = Scene()
    scene.caches.children[JOB].put(child("Job", "train", ("FineTuneJob", "run", OWNER)))
    scene.caches.children[POD].put(child("Pod", "forged", ("Job", "train", "uid-of-another-job")))
    loner = child("Pod", "loner", ("Job", "train", "uid-train"))
    loner["metadata"]["ownerReferences"] = []
    scene.caches.children[POD].put(loner)
    assert set(scene.snapshot().children[POD]) == set()


def test_pods_of_a_job_that_is_gone_are_known_by_its_name_and_not_among_the_children() -> None:
    scene = Scene()
    for name in ("train-a", "train-b"):
        scene.caches.children[POD].put(child("Pod", name, ("Job", "train", "uid-of-a-deleted-job")))
    scene.caches.children[POD].put(
        child("Pod", "other-run", ("Job", "train", "uid-of-a-deleted-job"), run="uid-other")
    )
    snapshot = scene.snapshot()
    assert set(snapshot.children[POD]) == set()
    assert {pod["metadata"]["name"] for pod in snapshot.orphans["train"]} == {"train-a", "train-b"}


def test_a_pod_of_a_deployment_belongs_to_the_deployments_owner() -> None:
    scene = Scene()
    scene.caches.children[DEPLOYMENT].put(child("Deployment", "endpoint-1a2b", ("FineTuneJob", "run", OWNER)))
    scene.caches.children[POD].put(child("Pod", "p", ("ReplicaSet", "endpoint-1a2b-7f8d", "uid-rs")))
    scene.caches.children[POD].put(child("Pod", "q", ("ReplicaSet", "other-7f8d", "uid-other")))
    assert set(scene.snapshot().children[POD]) == {"p"}


def test_objects_of_other_namespaces_are_not_seen() -> None:
    scene = Scene()
    elsewhere = run()
    elsewhere["metadata"] |= {"namespace": "elsewhere", "name": "other"}
    scene.caches.kinds["FineTuneJob"].put(elsewhere)
    assert set(scene.snapshot().finetunejobs) == {"run"}


def test_checkpoints_are_found_by_line_and_run_as_they_come_change_and_go() -> None:
    scene = Scene()
    store = scene.caches.kinds["Checkpoint"]
    store.put(checkpoint("c1"))
    store.put(checkpoint("c2", model="other"))
    assert [each.name for each in scene.snapshot().checkpoints.of_line("line")] == ["c1"]
    assert {each.name for each in scene.snapshot().checkpoints.of_run(OWNER)} == {"c1", "c2"}
    promoted = checkpoint("c1", version=2)
    promoted["status"] = {"promotedAt": "2026-01-01T00:00:00Z"}
    store.put(promoted)
    found = scene.snapshot().checkpoints.get("c1")
    assert found is not None
    assert found.status.promoted_at is not None
    store.remove(promoted)
    assert scene.snapshot().checkpoints.of_line("line") == ()


def test_an_object_that_cannot_be_read_is_left_out_and_hinders_no_other() -> None:
    scene = Scene()
    strange = checkpoint("strange")
    strange["spec"]["lineage"] = "none"
    scene.caches.kinds["Checkpoint"].put(strange)
    scene.caches.kinds["Checkpoint"].put(checkpoint("fine"))
    scene.caches.kinds["FineTuneJob"].put(obj("FineTuneJob", "strange", spec={"modelLine": 7}))
    snapshot = scene.snapshot()
    assert [each.name for each in snapshot.checkpoints.of_line("line")] == ["fine"]
    assert set(snapshot.finetunejobs) == {"run"}
    assert snapshot.finetunejobs.get("strange") is None
    assert scene.reader.resource(Key("FineTuneJob", "team", "strange")) is None


def test_a_model_is_parsed_once_for_each_state() -> None:
    scene = Scene()
    key = Key("FineTuneJob", "team", "run")
    first = scene.reader.resource(key)
    assert scene.reader.resource(key) is first
    changed = run()
    changed["metadata"]["resourceVersion"] = "2"
    changed["spec"]["suspend"] = True
    scene.caches.kinds["FineTuneJob"].put(changed)
    assert scene.reader.resource(key) is not first


def test_a_record_that_is_being_deleted_sees_others_of_its_content_in_any_namespace() -> None:
    scene = Scene()
    store = scene.caches.kinds["Checkpoint"]
    going, twin, other = checkpoint("going"), checkpoint("twin"), checkpoint("other")
    twin["metadata"]["namespace"] = "neighbours"
    other["spec"]["digest"] = "sha256:" + "b" * 64
    for record in (going, twin, other):
        store.put(record)

    def seen() -> list[str]:
        resource = scene.reader.resource(Key("Checkpoint", "team", "going"))
        assert resource is not None
        snapshot = scene.reader.snapshot(
            resource, now=NOW, facts=FACTS, entropy=b"", service_accounts=frozenset(), progress=None
        )
        return [record.name for record in snapshot.same_content]

    assert seen() == []
    metadata = {**going["metadata"], "resourceVersion": "2", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    store.put({**going, "metadata": metadata})
    assert seen() == ["twin"]


def created(manifest: Manifest, minute: int, **metadata: Any) -> Manifest:
    manifest["metadata"] |= {"creationTimestamp": f"2026-01-01T00:{minute:02}:00Z", **metadata}
    return manifest


def newer(caches: Caches, reader: SnapshotReader, kind: str) -> dict[str, int]:
    counts = {}
    for name in caches.kinds[kind].names("team"):
        resource = reader.resource(Key(kind, "team", name))
        assert resource is not None
        snapshot = reader.snapshot(
            resource, now=NOW, facts=FACTS, entropy=b"", service_accounts=frozenset(), progress=None
        )
        counts[name] = snapshot.newer()
    return counts


def test_the_newer_checkpoints_of_a_line_are_counted_without_those_that_go() -> None:
    caches = Caches()
    reader = SnapshotReader(caches)
    store = caches.kinds["Checkpoint"]
    for minute, name in enumerate(("a", "b", "c")):
        store.put(created(checkpoint(name), minute))
    store.put(created(checkpoint("other", model="another"), 9))
    assert newer(caches, reader, "Checkpoint") == {"a": 2, "b": 1, "c": 0, "other": 0}
    going = created(checkpoint("c", version=2), 2, deletionTimestamp="2026-01-02T00:00:00Z")
    store.put(going)
    assert newer(caches, reader, "Checkpoint") == {"a": 1, "b": 0, "c": 0, "other": 0}
    store.remove(going)
    assert newer(caches, reader, "Checkpoint") == {"a": 1, "b": 0, "other": 0}


def dataset_version(name: str, minute: int, kind: str = "Dataset", **metadata: Any) -> Manifest:
    digest = "sha256:" + "a" * 64
    spec = {
        "dataset": "tickets",
        "digest": digest,
        "sourceDigest": digest,
        "preparationDigest": digest,
        "ruleVersion": 1,
        "format": "Chat",
        "rows": 1,
        "splits": [],
    }
    version = created(obj("DatasetVersion", name, spec=spec), minute, labels={OWNER_KIND: kind}, **metadata)
    available = {"type": "Available", "status": "True", "reason": "Available"}
    moment = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    return version | {"status": {"conditions": [available | moment]}}


def test_the_newer_versions_of_a_dataset_are_counted_settled_or_not() -> None:
    caches = Caches()
    reader = SnapshotReader(caches)
    store = caches.kinds["DatasetVersion"]
    for minute, (name, kind) in enumerate((("a", "Dataset"), ("run", "FineTuneJob"), ("b", "Dataset"))):
        store.put(dataset_version(name, minute, kind))
    assert newer(caches, reader, "DatasetVersion") == {"a": 1, "run": 0, "b": 0}
    going = {"deletionTimestamp": "2026-01-02T00:00:00Z", "resourceVersion": "2"}
    store.put(dataset_version("b", 2, **going))
    assert newer(caches, reader, "DatasetVersion") == {"a": 0, "run": 0, "b": 0}
    store.remove(dataset_version("b", 2, **going))
    assert newer(caches, reader, "DatasetVersion") == {"a": 0, "run": 0}


@pytest.mark.parametrize("others", [3, 300])
def test_the_end_of_a_dataset_reads_its_own_versions_however_many_there_are(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = Caches()
    reader = SnapshotReader(caches)
    for number in range(others):
        version = dataset_version(f"other-{number}", 1)
        version["spec"] = {**version["spec"], "dataset": "other"}
        caches.kinds["DatasetVersion"].put(version)
    going = {"deletionTimestamp": "2026-01-02T00:00:00Z"}
    for name, metadata in (("standing", {}), ("going", going)):
        caches.kinds["DatasetVersion"].put(dataset_version(name, 1, **metadata))
    read: list[str] = []
    validate = DatasetVersion.model_validate

    def counted(version: Manifest) -> DatasetVersion:
        read.append(version["metadata"]["name"])
        return validate(version)

    monkeypatch.setattr(DatasetVersion, "model_validate", counted)
    dataset = Dataset.model_validate(
        obj("Dataset", "tickets", spec={"sources": [{"uri": "pvc://rows/a.jsonl"}]})
    )
    snapshot = reader.snapshot(
        dataset, now=NOW, facts=FACTS, entropy=b"", service_accounts=frozenset(), progress=None
    )
    assert {version.name for version in versions_of(dataset, snapshot)} == {"standing", "going"}
    assert sorted(read) == ["going", "standing"]


def test_what_a_checkpoint_came_from_is_known_as_long_as_it_exists() -> None:
    caches = Caches()
    reader = SnapshotReader(caches)
    child = checkpoint("child")
    child["spec"]["lineage"]["parentCheckpoint"] = "parent"
    caches.kinds["Checkpoint"].put(child)
    caches.kinds["Checkpoint"].put(checkpoint("sibling"))
    index = reader.checkpoints("team")
    assert [index.is_origin(name) for name in ("parent", "tickets-1", "child")] == [True, True, False]
    caches.kinds["Checkpoint"].remove(child)
    assert [index.is_origin(name) for name in ("parent", "tickets-1")] == [False, True]
