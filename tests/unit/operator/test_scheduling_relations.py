# SPDX-License-Identifier: Apache-2.0
"""Which objects are reconciled when another one changes."""

import pytest

from finetune_operator.api.meta import ObjectMeta, Resource
from finetune_operator.manifests.jobs import child_metadata
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.scheduling import affected_by_champion, related
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
    cluster.add(endpoint("follower", follow={"modelLine": "ticket-routing"}))
    cluster.add(endpoint("pinned", pin={"checkpoint": CHECKPOINT}))
    cluster.add(endpoint("stranger", follow={"modelLine": "another-line"}))
    return cluster


def names(cluster: MemoryCluster, kind: str, name: str) -> set[tuple[str, str]]:
    keys = related(kind, None, cluster.objects[kind, name], cluster.reader())
    assert all(key.namespace == NAMESPACE for key in keys)
    return {(key.kind, key.name) for key in keys}


def test_a_job_and_its_pod_lead_to_their_owner(cluster: MemoryCluster) -> None:
    job = cluster.stage_job("evaluate")
    pod = cluster.pod("evaluate", {})
    assert names(cluster, "Job", job["metadata"]["name"]) == {("FineTuneJob", JOB)}
    assert names(cluster, "Pod", pod["metadata"]["name"]) == {("FineTuneJob", JOB)}


def test_a_job_leads_to_an_owner_whose_name_is_too_long_for_a_label(cluster: MemoryCluster) -> None:
    name = "restored" * 12
    owner = Resource(kind="Checkpoint", metadata=ObjectMeta(name=name, namespace=NAMESPACE, uid="u"))
    job: Manifest = {"kind": "Job", "metadata": child_metadata(owner, "cleanup")}
    assert len(job["metadata"]["labels"]["finetune.dev/owner-name"]) == 63
    assert related("Job", None, job, cluster.reader()) == {Key("Checkpoint", NAMESPACE, name)}


def test_labels_that_name_a_foreign_kind_lead_nowhere(cluster: MemoryCluster) -> None:
    labels = {"finetune.dev/owner-kind": "Secret", "finetune.dev/owner-name": "admin"}
    foreign = {"metadata": {"name": "x", "namespace": "team", "labels": labels}}
    assert related("Job", None, foreign, cluster.reader()) == frozenset()
    assert related("Service", None, {"metadata": {"name": "x"}}, cluster.reader()) == frozenset()


def test_a_dataset_leads_to_the_runs_that_wait_for_it_and_to_its_version(cluster: MemoryCluster) -> None:
    for name, ref in (("waiting", DATASET), ("other-run", "other")):
        job = finetunejob(dataset={"ref": {"name": ref}})
        job["metadata"] = {"name": name, "uid": name}
        cluster.add(job)
    # A run whose rows are resolved has no use for what becomes of the Dataset.
    assert names(cluster, "Dataset", DATASET) == {("FineTuneJob", "waiting"), ("DatasetVersion", VERSION)}
    assert names(cluster, "DatasetVersion", VERSION) == {("FineTuneJob", "waiting"), ("Dataset", DATASET)}


def rival_of(cluster: MemoryCluster, name: str, **spec: object) -> Manifest:
    """A Checkpoint of the same line whose run does not exist."""
    original = cluster.objects["Checkpoint", CHECKPOINT]
    lineage = {**original["spec"]["lineage"], "job": {"name": f"{name}-run", "uid": name}}
    made = {**original, "metadata": {"name": name}, "spec": {**original["spec"], "lineage": lineage, **spec}}
    return cluster.add(made)


def test_a_checkpoint_leads_to_its_run_and_to_those_that_pin_or_serve_it_and_not_to_its_line(
    cluster: MemoryCluster,
) -> None:
    rival_of(cluster, "rival")
    cluster.add(endpoint("server", served=CHECKPOINT, follow={"modelLine": "another-line"}))
    assert names(cluster, "Checkpoint", CHECKPOINT) == {
        ("FineTuneJob", JOB),
        ("InferenceDeployment", "pinned"),
        ("InferenceDeployment", "server"),
    }


def test_the_champion_leads_to_the_followers_of_its_line(cluster: MemoryCluster) -> None:
    cluster.objects["Checkpoint", CHECKPOINT]["status"] = {"promotedAt": "2030-01-01T00:00:00Z"}
    assert ("InferenceDeployment", "follower") in names(cluster, "Checkpoint", CHECKPOINT)


def test_another_champion_concerns_followers_unfinished_runs_and_what_is_approved(
    cluster: MemoryCluster,
) -> None:
    rival_of(cluster, "of-an-ended-run")
    rival_of(cluster, "approved", approval={"state": "Approved"})
    rival_of(cluster, "promoted")["status"] = {"promotedAt": "2030-01-01T00:00:00Z"}
    keys = affected_by_champion(NAMESPACE, "ticket-routing", cluster.reader())
    assert {(key.kind, key.name) for key in keys} == {
        ("FineTuneJob", JOB),
        ("Checkpoint", CHECKPOINT),
        ("Checkpoint", "approved"),
        ("InferenceDeployment", "follower"),
    }
    cluster.succeed("evaluate", evaluated())
    cluster.settle()
    after = affected_by_champion(NAMESPACE, "ticket-routing", cluster.reader())
    assert after == {Key("InferenceDeployment", NAMESPACE, "follower")}


def test_a_run_leads_to_its_checkpoints(cluster: MemoryCluster) -> None:
    assert names(cluster, "FineTuneJob", JOB) == {("Checkpoint", CHECKPOINT)}


def test_an_endpoint_leads_to_what_it_serves_and_to_what_it_served(cluster: MemoryCluster) -> None:
    assert names(cluster, "InferenceDeployment", "follower") == set()
    served = cluster.add(endpoint("server", served=CHECKPOINT, follow={"modelLine": "ticket-routing"}))
    checkpoint = Key("Checkpoint", NAMESPACE, CHECKPOINT)
    unserved = {**served, "status": {}}
    for old, new in ((None, served), (served, unserved), (unserved, served), (served, None)):
        assert related("InferenceDeployment", old, new, cluster.reader()) == {checkpoint}


def test_an_endpoint_leads_to_the_going_records_that_it_no_longer_needs_in_every_namespace(
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
    pinning = cluster.add(endpoint("exact", pin={"uri": "s3://b/c", "digest": record["spec"]["digest"]}))
    assert related("InferenceDeployment", None, pinning, cluster.reader()) == frozenset()
    assert related("InferenceDeployment", pinning, pinning, cluster.reader()) == frozenset()
    going_too = {**pinning, "metadata": {**pinning["metadata"], "deletionTimestamp": "2030-01-02T03:00:00Z"}}
    for now in (None, going_too):
        keys = related("InferenceDeployment", pinning, now, cluster.reader())
        assert keys == {Key("Checkpoint", "elsewhere", "used")}


def test_a_profile_leads_to_what_uses_it_by_name_or_by_default(cluster: MemoryCluster) -> None:
    named = finetunejob(compute={"profile": "a100"})
    named["metadata"] = {"name": "named", "uid": "named"}
    cluster.add(named)
    cluster.change("Dataset", DATASET, split={"seed": 7})
    keys = related("ComputeProfile", None, cluster.objects["ComputeProfile", "cpu"], cluster.reader())
    assert keys == {
        Key("FineTuneJob", NAMESPACE, JOB),
        Key("Dataset", NAMESPACE, DATASET),
        *(Key("InferenceDeployment", NAMESPACE, name) for name in ("follower", "pinned", "stranger")),
    }
    changed = {"metadata": {"name": "a100"}}
    assert Key("FineTuneJob", NAMESPACE, "named") in related(
        "ComputeProfile", None, changed, cluster.reader()
    )


def test_a_profile_that_is_not_the_default_leads_to_nobody_who_names_none(cluster: MemoryCluster) -> None:
    plain = profile("plain", default=False)
    assert related("ComputeProfile", None, plain, cluster.reader()) == frozenset()
    was_default = related("ComputeProfile", profile("plain"), plain, cluster.reader())
    assert Key("FineTuneJob", NAMESPACE, JOB) in was_default


def test_the_status_of_a_profile_leads_to_nothing(cluster: MemoryCluster) -> None:
    before = cluster.objects["ComputeProfile", "cpu"]
    after = {**before, "status": {"observedGeneration": 7}}
    assert related("ComputeProfile", before, after, cluster.reader()) == frozenset()


def test_a_profile_leads_to_the_other_default_profiles() -> None:
    cluster = MemoryCluster(profile("first"), profile("second"), profile("other", default=False))
    first = cluster.objects["ComputeProfile", "first"]
    assert related("ComputeProfile", None, first, cluster.reader()) == {Key("ComputeProfile", "", "second")}


def test_a_profile_leads_to_nothing_that_is_through(cluster: MemoryCluster) -> None:
    cluster.succeed("evaluate", evaluated())
    cluster.settle()
    keys = related("ComputeProfile", None, cluster.objects["ComputeProfile", "cpu"], cluster.reader())
    assert {key.kind for key in keys} == {"InferenceDeployment"}


def test_a_deleted_run_still_leads_to_its_checkpoints(cluster: MemoryCluster) -> None:
    manifest = cluster.objects["FineTuneJob", JOB]
    cluster.remove("FineTuneJob", JOB)
    keys = related("FineTuneJob", manifest, None, cluster.reader())
    assert keys == {Key("Checkpoint", NAMESPACE, CHECKPOINT)}


def test_an_object_without_a_status_leads_to_nothing_it_does_not_name() -> None:
    cluster = MemoryCluster(dataset())
    assert names(cluster, "Dataset", DATASET) == set()
