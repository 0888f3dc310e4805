"""Which objects are looked at again when another one changes."""

from collections.abc import Iterable

import pytest

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.relations import related
from finetune_operator.reconcile.world import CheckpointIndex
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    JOB,
    VERSION,
    dataset,
    evaluated,
    finetunejob,
    profile,
)
from tests.unit.operator.runsteps import reached


class Listings:
    """Looks up in a memory cluster what the controller looks up in its caches."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def finetunejobs(self, namespace: str | None) -> Iterable[FineTuneJob]:
        return [FineTuneJob.model_validate(m) for m in self._in(namespace, "FineTuneJob")]

    def datasets(self, namespace: str | None) -> Iterable[Dataset]:
        return [Dataset.model_validate(m) for m in self._in(namespace, "Dataset")]

    def inferencedeployments(self, namespace: str | None) -> Iterable[InferenceDeployment]:
        return [InferenceDeployment.model_validate(m) for m in self._in(namespace, "InferenceDeployment")]

    def computeprofiles(self) -> Iterable[ComputeProfile]:
        return [ComputeProfile.model_validate(m) for m in self._cluster.of("ComputeProfile").values()]

    def checkpoints(self, namespace: str) -> CheckpointIndex:
        return CheckpointIndex(Checkpoint.model_validate(m) for m in self._in(namespace, "Checkpoint"))

    def going_checkpoints(self) -> Iterable[Checkpoint]:
        found = map(Checkpoint.model_validate, self._in(None, "Checkpoint"))
        return [each for each in found if each.metadata.deletion_timestamp is not None]

    def _in(self, namespace: str | None, kind: str) -> list[Manifest]:
        found = self._cluster.of(kind).values()
        return [m for m in found if namespace in (None, m["metadata"]["namespace"])]


def endpoint(name: str, served: str = "", **model: object) -> Manifest:
    return {
        "kind": "InferenceDeployment",
        "metadata": {"name": name},
        "spec": {"baseModel": {"uri": "pvc://models/gemma"}, "models": [{"name": "router", **model}]},
        "status": {"models": [{"name": "router", "checkpoint": served}]} if served else {},
    }


@pytest.fixture
def cluster() -> MemoryCluster:
    cluster = reached("evaluate")
    cluster.add(endpoint("follower", follow={"model": "ticket-routing"}))
    cluster.add(endpoint("pinned", pin={"checkpoint": CHECKPOINT}))
    cluster.add(endpoint("stranger", follow={"model": "another-line"}))
    return cluster


def names(cluster: MemoryCluster, kind: str, name: str) -> set[tuple[str, str]]:
    keys = related(kind, cluster.objects[kind, name], Listings(cluster))
    assert all(key.namespace == NAMESPACE for key in keys)
    return {(key.kind, key.name) for key in keys}


def test_a_job_and_its_pod_lead_to_their_owner(cluster: MemoryCluster) -> None:
    job = cluster.stage_job("evaluate")
    pod = cluster.pod("evaluate", {})
    assert names(cluster, "Job", job["metadata"]["name"]) == {("FineTuneJob", JOB)}
    assert names(cluster, "Pod", pod["metadata"]["name"]) == {("FineTuneJob", JOB)}


def test_labels_that_name_a_foreign_kind_lead_nowhere(cluster: MemoryCluster) -> None:
    labels = {"finetune.dev/owner-kind": "Secret", "finetune.dev/owner-name": "admin"}
    foreign = {"metadata": {"name": "x", "namespace": "team", "labels": labels}}
    assert related("Job", foreign, Listings(cluster)) == frozenset()
    assert related("Service", {"metadata": {"name": "x"}}, Listings(cluster)) == frozenset()


def test_a_dataset_leads_to_the_runs_that_wait_for_it_and_to_its_version(cluster: MemoryCluster) -> None:
    other = finetunejob(dataset={"ref": {"name": "other"}})
    other["metadata"] = {"name": "other-run", "uid": "other"}
    cluster.add(other)
    assert names(cluster, "Dataset", DATASET) == {("FineTuneJob", JOB), ("DatasetVersion", VERSION)}
    cluster.succeed("evaluate", evaluated())
    cluster.settle()
    assert names(cluster, "Dataset", DATASET) == {("DatasetVersion", VERSION)}


def test_a_version_leads_to_its_dataset_and_the_runs_that_wait_for_it(cluster: MemoryCluster) -> None:
    assert names(cluster, "DatasetVersion", VERSION) == {("FineTuneJob", JOB), ("Dataset", DATASET)}


def test_a_checkpoint_leads_to_its_run_its_followers_and_the_waiting_of_its_line(
    cluster: MemoryCluster,
) -> None:
    rival = cluster.objects["Checkpoint", CHECKPOINT]
    lineage = {**rival["spec"]["lineage"], "job": {"name": "rival-run", "uid": "rival"}}
    cluster.add({**rival, "metadata": {"name": "rival"}, "spec": {**rival["spec"], "lineage": lineage}})
    assert names(cluster, "Checkpoint", CHECKPOINT) == {
        ("FineTuneJob", JOB),
        ("InferenceDeployment", "follower"),
        ("InferenceDeployment", "pinned"),
        ("Checkpoint", "rival"),
        ("FineTuneJob", "rival-run"),
    }
    cluster.objects["Checkpoint", "rival"]["status"] = {"promotedAt": "2030-01-01T00:00:00Z"}
    assert ("Checkpoint", "rival") not in names(cluster, "Checkpoint", CHECKPOINT)


def test_a_run_leads_to_its_checkpoints(cluster: MemoryCluster) -> None:
    assert names(cluster, "FineTuneJob", JOB) == {("Checkpoint", CHECKPOINT)}


def test_an_endpoint_leads_to_what_it_serves_and_to_what_it_served(cluster: MemoryCluster) -> None:
    assert names(cluster, "InferenceDeployment", "follower") == set()
    cluster.add(endpoint("server", served=CHECKPOINT, follow={"model": "ticket-routing"}))
    assert names(cluster, "InferenceDeployment", "server") == {("Checkpoint", CHECKPOINT)}
    cluster.objects["Checkpoint", CHECKPOINT]["status"] = {"inUseBy": ["follower"]}
    assert names(cluster, "InferenceDeployment", "follower") == {("Checkpoint", CHECKPOINT)}


def test_an_endpoint_leads_to_the_going_records_that_wait_for_users_in_every_namespace(
    cluster: MemoryCluster,
) -> None:
    record = cluster.objects["Checkpoint", CHECKPOINT]
    for name, reason, going in (
        ("used", "InUse", True),
        ("cleaned", "CleaningUp", True),
        ("kept", "", False),
    ):
        made = cluster.add({**record, "metadata": {"name": name, "namespace": "elsewhere"}})
        if going:
            made["metadata"]["deletionTimestamp"] = "2030-01-02T03:00:00Z"
            since = {"lastTransitionTime": "2030-01-02T03:00:00Z", "status": "True"}
            made["status"] = {"conditions": [{"type": "Reconciling", "reason": reason, **since}]}
    keys = related("InferenceDeployment", cluster.objects["InferenceDeployment", "pinned"], Listings(cluster))
    assert keys == {Key("Checkpoint", "elsewhere", "used")}


def test_a_profile_leads_to_what_uses_it_by_name_or_by_default(cluster: MemoryCluster) -> None:
    named = finetunejob(compute={"profile": "a100"})
    named["metadata"] = {"name": "named", "uid": "named"}
    cluster.add(named)
    cluster.change("Dataset", DATASET, split={"seed": 7})
    keys = related("ComputeProfile", cluster.objects["ComputeProfile", "cpu"], Listings(cluster))
    assert keys == {
        Key("FineTuneJob", NAMESPACE, JOB),
        Key("Dataset", NAMESPACE, DATASET),
        *(Key("InferenceDeployment", NAMESPACE, name) for name in ("follower", "pinned", "stranger")),
    }
    changed = {"metadata": {"name": "a100"}}
    assert Key("FineTuneJob", NAMESPACE, "named") in related("ComputeProfile", changed, Listings(cluster))


def test_a_profile_leads_to_the_other_default_profiles() -> None:
    cluster = MemoryCluster(profile("first"), profile("second"), profile("other", default=False))
    first = cluster.objects["ComputeProfile", "first"]
    assert related("ComputeProfile", first, Listings(cluster)) == {Key("ComputeProfile", "", "second")}


def test_a_profile_leads_to_nothing_that_is_through(cluster: MemoryCluster) -> None:
    cluster.succeed("evaluate", evaluated())
    cluster.settle()
    keys = related("ComputeProfile", cluster.objects["ComputeProfile", "cpu"], Listings(cluster))
    assert {key.kind for key in keys} == {"InferenceDeployment"}


def test_a_deleted_run_still_leads_to_its_checkpoints(cluster: MemoryCluster) -> None:
    manifest = cluster.objects["FineTuneJob", JOB]
    cluster.remove("FineTuneJob", JOB)
    keys = related("FineTuneJob", manifest, Listings(cluster))
    assert keys == {Key("Checkpoint", NAMESPACE, CHECKPOINT)}


def test_an_object_without_a_status_leads_to_nothing_it_does_not_name() -> None:
    cluster = MemoryCluster(dataset())
    assert names(cluster, "Dataset", DATASET) == set()
