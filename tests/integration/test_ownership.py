# SPDX-License-Identifier: Apache-2.0
"""Deletion of owned objects and restores from a backup, on a real API server."""

import json
from typing import Any

import pytest

from finetune_operator.manifests.labels import FINALIZER, RECORDED_RUN
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage, until_condition, until_settled
from tests.integration.manifests import condition
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually
from tools.cluster.audit import AuditLog
from tools.fakepods import digest

GONE_SECONDS = 90
"""Longer than the namespace controller needs."""
KINDS = ("Dataset", "DatasetVersion", "Checkpoint", "FineTuneJob", "InferenceDeployment")


def started_elsewhere(operators: Operators, namespace: str) -> Operator:
    """An operator whose Lease is outside the namespace that it watches."""
    return operators.start(POD_NAMESPACE="default", LEASE_NAME=f"lease-{namespace}").wait_active()


def version(namespace: str, name: str = "rows-1") -> Object:
    """A record with `deletionPolicy: Delete` whose Dataset was deleted."""
    split = {"name": "train", "rows": 10, "digest": digest(name, "train")}
    record = manifests.of(
        "DatasetVersion",
        namespace,
        name,
        {
            "dataset": "rows",
            "digest": digest(name),
            "sourceDigest": digest("source"),
            "preparationDigest": digest("preparation"),
            "ruleVersion": 1,
            "format": "CSV",
            "rows": 10,
            "splits": [split],
            "deletionPolicy": "Delete",
        },
    )
    record["metadata"]["annotations"] = {"finetune.dev/store": "pvc://artifacts"}
    return record


def until_held(api: Api, namespace: str, kind: str, name: str, operator: Operator) -> Object:
    def held() -> Object | None:
        found = api.get(kind, namespace, name)
        return found if found and FINALIZER in found["metadata"].get("finalizers", ()) else None

    return eventually(f"{kind} {name} has the finalizer", held, describe=lambda: operator.log)


def until_gone(api: Api, namespace: str, kind: str, name: str, operator: Operator) -> None:
    eventually(
        f"{kind} {name} is gone",
        lambda: api.get(kind, namespace, name) is None,
        describe=lambda: f"{api.get(kind, namespace, name)}\n{operator.log[-4000:]}",
    )


def until_reason(api: Api, namespace: str, name: str, reason: str, operator: Operator) -> Object:
    """Wait until the condition Reconciling of a DatasetVersion has this reason, and return it."""

    def reached() -> Object | None:
        found = condition(api.get("DatasetVersion", namespace, name), "Reconciling")
        return found if found.get("reason") == reason else None

    return eventually(f"{name} is {reason}", reached, describe=lambda: operator.log[-4000:])


def events(api: Api, namespace: str, reason: str) -> list[str]:
    return [event["message"] for event in api.list("Event", namespace) if event["reason"] == reason]


def test_pruning_a_run_leaves_its_live_model_serving(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace, deletionPolicy="Delete"))
    api.create(manifests.inferencedeployment(namespace))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    before = until_condition(api, (namespace, "InferenceDeployment", "support"), "Ready", operator)
    deployments = identities(api, namespace, "Deployment")
    api.delete("FineTuneJob", namespace, "routing")
    until_gone(api, namespace, "FineTuneJob", "routing", operator)
    until_settled(audit, operators.user)
    after = api.get("InferenceDeployment", namespace, "support")
    assert after is not None
    assert after["status"]["revision"] == before["status"]["revision"]
    assert after["status"]["models"] == before["status"]["models"]
    assert identities(api, namespace, "Deployment") == deployments
    checkpoint = api.get("Checkpoint", namespace, after["status"]["models"][0]["checkpoint"])
    assert condition(checkpoint, "Promoted")["status"] == "True"
    assert any("(promoted)" in message for message in events(api, namespace, "RecordsDeleted"))


def identities(api: Api, namespace: str, kind: str) -> set[tuple[str, int]]:
    """The uid and generation, which change when an object is recreated or edited."""
    return {(obj["metadata"]["uid"], obj["metadata"]["generation"]) for obj in api.list(kind, namespace)}


def test_what_nobody_counts_on_goes_with_its_run_and_its_dataset(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    api.create(with_delete(manifests.dataset(namespace)))
    manual = {"mode": "Manual"}
    api.create(manifests.finetunejob(namespace, promotion=manual, deletionPolicy="Delete"))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    for kind, name in (("FineTuneJob", "routing"), ("Dataset", "tickets")):
        api.delete(kind, namespace, name)
        until_gone(api, namespace, kind, name, operator)
    eventually(
        "the records are gone",
        lambda: not api.list("Checkpoint", namespace) + api.list("DatasetVersion", namespace),
        describe=lambda: operator.log[-4000:],
    )
    # The contents of both records, and the run's folder.
    assert kubelet.started.count("cleanup") == 3
    assert len(events(api, namespace, "ContentRemoved")) == 2


def with_delete(manifest: Object) -> Object:
    return {**manifest, "spec": {**manifest["spec"], "deletionPolicy": "Delete"}}


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_record_goes_when_its_content_has_gone(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, propagation: str
) -> None:
    kubelet.held.add("cleanup")
    operator = operators.start().wait_active()
    api.create(version(namespace))
    until_held(api, namespace, "DatasetVersion", "rows-1", operator)
    api.delete("DatasetVersion", namespace, "rows-1", propagation)
    eventually("the cleanup runs", lambda: "cleanup" in kubelet.started, describe=lambda: operator.log)
    until_reason(api, namespace, "rows-1", "CleaningUp", operator)
    kubelet.held.clear()
    until_gone(api, namespace, "DatasetVersion", "rows-1", operator)
    assert kubelet.started.count("cleanup") == 1


def test_a_cleanup_that_fails_is_shown_and_retain_lets_the_record_go(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    kubelet.held.add("cleanup")
    operator = operators.start().wait_active()
    api.create(version(namespace))
    until_held(api, namespace, "DatasetVersion", "rows-1", operator)
    api.delete("DatasetVersion", namespace, "rows-1")
    eventually("the cleanup runs", lambda: "cleanup" in kubelet.started, describe=lambda: operator.log)
    fail_pods(api, namespace, "StoreUnavailable: the claim is read-only")
    shown = until_reason(api, namespace, "rows-1", "CleanupFailed", operator)
    assert "the claim is read-only" in shown["message"]
    api.patch("DatasetVersion", namespace, "rows-1", {"spec": {"deletionPolicy": "Retain"}})
    until_gone(api, namespace, "DatasetVersion", "rows-1", operator)
    assert any("stays: deletionPolicy is Retain" in text for text in events(api, namespace, "ContentKept"))


def fail_pods(api: Api, namespace: str, message: str) -> None:
    """Let every pod of the namespace fail, as the kubelet reports it."""
    for pod in api.list("Pod", namespace):
        status = pod["status"]["containerStatuses"][0]
        started = status["state"]["running"]["startedAt"]
        ended = {"exitCode": 12, "startedAt": started, "finishedAt": started, "message": message}
        failed = {"phase": "Failed", "containerStatuses": [{**status, "state": {"terminated": ended}}]}
        api.patch("Pod", namespace, pod["metadata"]["name"], {"status": failed}, "status")


def test_a_namespace_in_which_everything_has_delete_can_be_deleted(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = started_elsewhere(operators, namespace)
    api.create(with_delete(manifests.dataset(namespace)))
    api.create(manifests.finetunejob(namespace, deletionPolicy="Delete"))
    api.create(manifests.inferencedeployment(namespace))
    until_condition(api, (namespace, "InferenceDeployment", "support"), "Ready", operator)
    # An object that waits for a cleanup that does not end.
    kubelet.held.add("cleanup")
    api.create(version(namespace))
    until_held(api, namespace, "DatasetVersion", "rows-1", operator)
    api.delete("DatasetVersion", namespace, "rows-1")
    until_reason(api, namespace, "rows-1", "CleaningUp", operator)
    delete_namespace(api, namespace)
    until_namespace_gone(api, namespace, operator)


def test_a_namespace_that_was_deleted_without_an_operator_goes_when_there_is_one(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = started_elsewhere(operators, namespace)
    api.create(version(namespace))
    api.create(with_delete(manifests.dataset(namespace, "unprepared")))
    api.create(manifests.finetunejob(namespace, deletionPolicy="Delete"))
    held = (("DatasetVersion", "rows-1"), ("Dataset", "unprepared"), ("FineTuneJob", "routing"))
    for kind, name in held:
        until_held(api, namespace, kind, name, operator)
    operator.kill()
    delete_namespace(api, namespace)

    def waits_for_finalizers() -> bool:
        found = api.get("Namespace", "", namespace) or {}
        return FINALIZER in condition(found, "NamespaceFinalizersRemaining").get("message", "")

    eventually("the namespace waits for finalizers", waits_for_finalizers, GONE_SECONDS)
    assert all(api.get(kind, namespace, name) for kind, name in held)
    again = started_elsewhere(operators, namespace)
    until_namespace_gone(api, namespace, again)


def delete_namespace(api: Api, namespace: str) -> None:
    api.request("DELETE", f"/api/v1/namespaces/{namespace}").raise_for_status()


def until_namespace_gone(api: Api, namespace: str, operator: Operator) -> None:
    eventually(
        "the namespace is gone",
        lambda: api.get("Namespace", "", namespace) is None,
        GONE_SECONDS,
        lambda: f"{json.dumps(api.get('Namespace', '', namespace))}\n{operator.log[-4000:]}",
    )


def saved(api: Api, namespace: str, *kinds: str) -> list[Object]:
    """A backup like that of Velero: without status, uid and other fields of one cluster."""
    own = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
    backup = []
    for kind in kinds:
        for item in api.list(kind, namespace):
            metadata = {key: value for key, value in item["metadata"].items() if key not in own}
            backup.append(manifests.of(kind, namespace, "", item["spec"]) | {"metadata": metadata})
    return backup


def lose(api: Api, namespace: str) -> None:
    for kind in KINDS:
        for item in api.list(kind, namespace):
            api.delete(kind, namespace, item["metadata"]["name"])
    eventually("everything is gone", lambda: not any(api.list(kind, namespace) for kind in (*KINDS, "Job")))


def test_a_run_restored_under_another_uid_without_its_status_trains_nothing(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace, childrenTTLSeconds=0))
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    eventually(
        "its finished Jobs are gone",
        lambda: not any(jobs_of_stage(api, namespace, stage) for stage in ("preflight", "train", "evaluate")),
    )
    until_settled(audit, operators.user)
    assert is_unchanged(api, namespace, job)
    # Restore the run before its records, which is the most difficult order.
    backup = saved(api, namespace, "FineTuneJob", "Checkpoint", "DatasetVersion", "Dataset")
    lose(api, namespace)
    started = list(kubelet.started)
    for manifest in backup:
        api.create(manifest)
    restored = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert condition(restored, "Ready")["reason"] == "Restored"
    assert restored["metadata"]["uid"] != job["metadata"]["uid"]
    assert [each["name"] for each in restored["status"]["checkpoints"]] == [
        each["name"] for each in job["status"]["checkpoints"]
    ]
    until_settled(audit, operators.user)
    assert set(kubelet.started[len(started) :]) <= {"prepare"}


def is_unchanged(api: Api, namespace: str, job: Object) -> bool:
    found: Any = api.get("FineTuneJob", namespace, "routing")
    return bool(found["status"] == job["status"])


def test_a_run_that_is_deleted_and_made_again_from_its_manifest_trains_again(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.apply(manifests.finetunejob(namespace))
    first = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    marked = eventually(
        "the run is marked",
        lambda: (api.get("FineTuneJob", namespace, "routing") or {})["metadata"].get("annotations"),
    )
    assert marked[RECORDED_RUN].startswith(first["metadata"]["uid"])
    api.delete("FineTuneJob", namespace, "routing")
    until_gone(api, namespace, "FineTuneJob", "routing", operator)
    api.apply(manifests.finetunejob(namespace))
    second = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert kubelet.started.count("train") == 2
    names = {each["name"] for job in (first, second) for each in job["status"]["checkpoints"]}
    assert {record["metadata"]["name"] for record in api.list("Checkpoint", namespace)} == names
    assert len(names) == 2
