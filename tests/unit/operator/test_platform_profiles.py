# SPDX-License-Identifier: Apache-2.0
"""Which namespaces may use a ComputeProfile, and what each of them gets."""

import pytest

from finetune_operator.engine import resources
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.platform.profiles import LABELS_RECHECK_SECONDS
from tests.unit.operator.endpoints import EndpointCluster, checkpoint
from tests.unit.operator.evaluations import evaluation
from tests.unit.operator.memorycluster import NAMESPACE, MemoryCluster
from tests.unit.operator.runobjects import DATASET, JOB, claim, dataset, finetunejob, profile

BANNED = {"key": "example.com/team", "operator": "NotIn", "values": ["b"]}
CONDITIONS = {"matchExpressions": [{"key": "example.com/gpus", "operator": "Exists"}, BANNED]}
SELECTOR = {"matchLabels": {"example.com/gpus": "true"}}


def namespace(**labels: str) -> Manifest:
    metadata = {"name": NAMESPACE, "labels": {f"example.com/{key}": value for key, value in labels.items()}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def cluster_of(*objects: Manifest, **spec: object) -> MemoryCluster:
    claims = (claim("artifacts", "ReadWriteMany"), claim("models"))
    cluster = MemoryCluster(*objects, *claims, dataset(), finetunejob(**spec))
    cluster.settle()
    return cluster


def reason(cluster: MemoryCluster) -> str:
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    return str(condition["reason"])


@pytest.mark.parametrize(
    ("spec", "labels", "is_allowed"),
    [
        ({}, {}, True),
        ({"namespaces": {"names": ["other"]}}, {}, False),
        ({"namespaces": {"selector": SELECTOR}}, {}, False),
        ({"namespaces": {"selector": SELECTOR}}, {"gpus": "false"}, False),
        ({"namespaces": {"selector": SELECTOR}}, {"gpus": "true", "team": "a"}, True),
        ({"namespaces": {"selector": CONDITIONS}}, {}, False),
        ({"namespaces": {"selector": CONDITIONS}}, {"gpus": "no"}, True),
        ({"namespaces": {"selector": CONDITIONS}}, {"gpus": "no", "team": "b"}, False),
        ({"namespaces": {"selector": CONDITIONS, "names": [NAMESPACE]}}, {}, True),
        ({"namespaces": {"selector": {**SELECTOR, "matchExpressions": [BANNED]}}}, {"gpus": "true"}, True),
        ({"namespaces": {"selector": {**SELECTOR, "matchExpressions": [BANNED]}}}, {"team": "a"}, False),
        ({"namespaces": {"selector": SELECTOR, "names": [NAMESPACE]}}, {}, True),
        ({"namespaces": {"selector": SELECTOR, "names": ["other"]}}, {"gpus": "true"}, True),
    ],
)
def test_a_namespace_may_use_a_profile_by_name_or_by_labels(
    spec: Manifest, labels: dict[str, str], is_allowed: bool
) -> None:
    cluster = cluster_of(profile(**spec), namespace(**labels))
    assert (reason(cluster) != "ProfileNotAllowed") == is_allowed


def test_a_run_notices_the_labels_of_its_namespace_within_a_minute() -> None:
    cluster = cluster_of(profile(namespaces={"selector": SELECTOR}), namespace())
    message = (cluster.condition("FineTuneJob", JOB, "Reconciling") or {})["message"]
    assert "give the namespace the labels of the profile's namespaces.selector" in message
    assert cluster.plan("FineTuneJob", JOB).requeue_after == LABELS_RECHECK_SECONDS <= 30
    cluster.add(namespace(gpus="true"))
    cluster.settle()
    assert reason(cluster) != "ProfileNotAllowed"


def test_a_dataset_waits_for_the_labels_of_its_namespace_too() -> None:
    claims = (claim("artifacts", "ReadWriteMany"), claim("models"))
    cluster = MemoryCluster(profile(namespaces={"selector": SELECTOR}), namespace(), *claims, dataset())
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "ProfileNotAllowed"}
    assert cluster.plan("Dataset", DATASET).requeue_after == LABELS_RECHECK_SECONDS
    cluster.add(namespace(gpus="true"))
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "Queued"}


def test_a_dataset_with_a_store_of_its_own_needs_no_labels_of_its_namespace() -> None:
    claims = (claim("artifacts", "ReadWriteMany"), claim("models"))
    own = dataset(store={"uri": "pvc://artifacts"})
    cluster = MemoryCluster(profile(namespaces={"selector": SELECTOR}), namespace(), *claims, own)
    cluster.settle()
    assert cluster.states("Dataset", DATASET) == {"Reconciling": "Queued"}


def reads_namespace(cluster: MemoryCluster, kind: str, name: str) -> bool:
    """Whether a pass over the object requests its namespace."""
    _, snapshot = cluster.snapshot(kind, name)
    return resources.NAMESPACE in snapshot.looked_up


def by_labels(name: str = "labelled", *names: str) -> Manifest:
    return profile(name, default=False, namespaces={"selector": SELECTOR, "names": list(names)})


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        ({}, False),
        ({"compute": {"profile": "cpu"}}, False),
        ({"compute": {"profile": "labelled"}}, True),
        ({"compute": {"profile": "by-name"}}, False),
        ({"evaluation": {"profile": "labelled"}}, True),
        ({"compute": {"profile": "missing"}}, True),
        ({"compute": {"profile": "of-others"}}, True),
        ({"compute": {"profile": "labelled"}, "suspend": True}, True),
    ],
)
def test_a_run_reads_its_namespace_only_if_labels_decide_about_its_profiles(
    spec: Manifest, reads: bool
) -> None:
    named = by_labels("by-name", NAMESPACE)
    others = profile("of-others", default=False, namespaces={"names": ["other"]})
    cluster = cluster_of(profile(), by_labels(), named, others, namespace(), **spec)
    assert reads_namespace(cluster, "FineTuneJob", JOB) is reads
    assert not reads_namespace(cluster, "Dataset", DATASET)


def test_every_kind_reads_its_namespace_for_the_labels_that_its_profile_selects() -> None:
    cluster = MemoryCluster(profile(namespaces={"selector": SELECTOR}), dataset())
    cluster.add(evaluation())
    assert reads_namespace(cluster, "Dataset", DATASET)
    assert reads_namespace(cluster, "Evaluation", evaluation()["metadata"]["name"])
    desk = EndpointCluster(checkpoint("first", "1"))
    assert not reads_namespace(desk.cluster, "InferenceDeployment", "desk")
    desk.cluster.objects["ComputeProfile", "standard"]["spec"]["namespaces"] = {"selector": SELECTOR}
    assert reads_namespace(desk.cluster, "InferenceDeployment", "desk")
    assert desk.reconcile().create == ()
    assert desk.condition("Reconciling") == (
        "ProfileNotAllowed",
        (desk.condition("Reconciling") or ("", ""))[1],
    )


def test_without_the_right_to_namespaces_only_objects_of_profiles_that_select_by_labels_wait() -> None:
    cluster = cluster_of(profile(), by_labels(), namespace(gpus="true"))
    cluster.hides_namespace = True
    for name, chosen in (("waits", "labelled"), ("runs", "cpu"), ("asks", "missing")):
        run = finetunejob(compute={"profile": chosen})
        cluster.add({**run, "metadata": {"name": name}})
    cluster.settle()

    def found(name: str) -> Manifest:
        return cluster.condition("FineTuneJob", name, "Reconciling") or {}

    assert found("waits")["reason"] == "Forbidden"
    assert 'cannot get resource "namespaces"' in found("waits")["message"]
    assert "helm upgrade restores" in found("waits")["message"]
    assert cluster.plan("FineTuneJob", "waits").requeue_after == LABELS_RECHECK_SECONDS
    assert found("runs")["reason"] == "WaitingForDataset"
    assert found("asks")["message"].endswith("profiles for this namespace: cpu")
    cluster.hides_namespace = False
    cluster.settle()
    assert found("waits")["reason"] == "WaitingForDataset"
    assert found("asks")["message"].endswith("profiles for this namespace: cpu, labelled")


def test_each_namespace_has_its_own_folder_in_the_store_of_a_profile() -> None:
    store = {"uri": "s3://artifacts/{namespace}/finetune"}
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    cluster = cluster_of(profile(store=store), dataset=own_rows)
    jobs = cluster.of("Job").values()
    stores = [job["metadata"]["annotations"]["finetune.dev/store"] for job in jobs]
    # Of the Dataset and of the run.
    assert stores == [f"s3://artifacts/{NAMESPACE}/finetune"] * 2
    assert cluster.job(JOB).status.resolved.store == stores[0]


def test_a_message_about_a_missing_profile_counts_those_that_it_does_not_name() -> None:
    offered = [profile(f"size-{number}", default=False) for number in range(10)]
    cluster = cluster_of(*offered, compute={"profile": "nosuch"})
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["message"].endswith("size-6, size-7 and 2 more")
