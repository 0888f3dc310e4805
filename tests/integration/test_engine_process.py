# SPDX-License-Identifier: Apache-2.0
"""Operator processes on a real API server: restarts, other installations, foreign objects and retries."""

import signal
from datetime import datetime

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.chain import (
    jobs_of_stage,
    until_all_reconciled,
    until_all_watched,
    until_condition,
    until_settled,
)
from tests.integration.manifests import condition
from tests.integration.operators import LEASE_SECONDS, Operator, Operators
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

FIRST_STAGE_REQUESTS = 10
"""Requests that one run may cost until its first stage's Job exists."""


def created_jobs(audit: AuditLog, mark: int, namespace: str) -> list[str]:
    return [
        asked.name
        for asked in audit.since(mark)
        if (asked.verb, asked.resource, asked.namespace, asked.code) == ("create", "jobs", namespace, 201)
    ]


def test_rows_become_a_promoted_checkpoint_and_an_endpoint_that_serves_it(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start_fresh().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    api.create(manifests.inferencedeployment(namespace))
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert kubelet.started[:4] == ["prepare", "preflight", "train", "evaluate"]
    assert [stage["name"] for stage in job["status"]["stages"]] == ["preflight", "train", "evaluate"]
    assert job["status"]["evaluation"]["verdict"] == "Passed"
    checkpoint = job["status"]["checkpoints"][0]["name"]
    promoted = until_condition(api, (namespace, "Checkpoint", checkpoint), "Promoted", operator)
    assert promoted["spec"]["lineage"]["job"]["uid"] == job["metadata"]["uid"]
    endpoint = until_condition(api, (namespace, "InferenceDeployment", "support"), "Ready", operator)
    assert endpoint["status"]["models"][0]["checkpoint"] == checkpoint
    assert operator.metric(f'finetune_promotions_total{{namespace="{namespace}",result="promoted"}}') == 1
    assert operator.metric('finetune_stage_seconds_count{outcome="succeeded",stage="train"}') == 1
    assert operator.metric(f'finetune_jobs{{namespace="{namespace}",phase="{job["status"]["phase"]}"}}') == 1


def test_a_restart_with_everything_in_place_writes_nothing(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    # The API server adds an empty list to the status of a budget that no one has used.
    unused = manifests.profile(f"unused-{namespace}")
    unused["spec"]["cost"] = {"budget": {"period": "Month", "deviceHoursPerNamespace": 1000}}
    api.create(unused)
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    api.create(manifests.inferencedeployment(namespace))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    until_condition(api, (namespace, "InferenceDeployment", "support"), "Ready", operator)
    until_settled(audit, operators.user)
    assert operator.terminate() == 0
    mark = audit.mark()
    again = operators.start("operator-1").wait_active()
    until_all_reconciled(api, namespace, again)
    assert audit.writes(mark, operators.user) == []


def test_a_pass_that_changes_nothing_asks_nothing(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    until_settled(audit, operators.user)
    mark = audit.mark()
    looked = 'finetune_reconcile_seconds_count{kind="FineTuneJob",result="ok"}'
    before = operator.metric(looked) or 0
    api.patch("FineTuneJob", namespace, "routing", {"metadata": {"annotations": {"note": "seen"}}})
    eventually("the run was looked at again", lambda: (operator.metric(looked) or 0) > before)
    asked = [each for each in audit.since(mark) if each.user == operators.user and each.resource != "leases"]
    assert [each for each in asked if each.verb != "watch"] == []


def test_a_run_costs_few_requests_until_its_first_stage(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    start = audit.mark()
    operator = operators.start().wait_active()
    until_all_watched(audit, start, operators.user)
    until_condition(api, ("", "ComputeProfile", f"cpu-{namespace}"), "Ready", operator)
    until_settled(audit, operators.user)
    mark = audit.mark()
    own_rows = {"source": {"uri": "configmap://tickets/rows.jsonl"}}
    kubelet.held.add("prepare")
    api.create(manifests.finetunejob(namespace, dataset=own_rows))
    eventually("the first stage runs", lambda: kubelet.started == ["prepare"])
    until_settled(audit, operators.user)
    asked = [
        each
        for each in audit.since(mark)
        if each.user == operators.user and each.resource != "leases" and each.verb != "watch"
    ]
    assert len(asked) <= FIRST_STAGE_REQUESTS, asked


def test_the_same_manifest_a_hundred_times_is_one_train_job(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    mark = audit.mark()
    api.apply(manifests.dataset(namespace))
    for _ in range(100):
        api.apply(manifests.finetunejob(namespace))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    until_settled(audit, operators.user)
    assert len(jobs_of_stage(api, namespace, "train")) == 1
    assert kubelet.started.count("train") == 1
    assert len([name for name in created_jobs(audit, mark, namespace) if "-train-" in name]) == 1


def test_an_annotation_has_the_source_of_a_ready_dataset_looked_at_once_more(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    until_condition(api, (namespace, "Dataset", "tickets"), "Ready", operator)
    asking = {"metadata": {"annotations": {"finetune.dev/refresh-requested": "now"}}}
    api.patch("Dataset", namespace, "tickets", asking)
    found = until_condition(api, (namespace, "Dataset", "tickets"), "Refreshed", operator)
    until_settled(audit, operators.user)
    assert condition(found, "Ready")["status"] == "True"
    assert (found["status"]["refresh"]["checks"], found["status"]["refresh"]["requested"]) == (2, "now")
    assert kubelet.started == ["prepare", "prepare"]
    assert len(api.list("DatasetVersion", namespace)) == 1


def test_a_foreign_job_of_the_name_is_left_alone_and_the_run_says_so(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    kubelet.held.add("preflight")
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    ours = eventually("the preflight Job exists", lambda: jobs_of_stage(api, namespace, "preflight"))[0]
    # Another client takes the name while the operator is stopped.
    assert operator.terminate() == 0
    name = ours["metadata"]["name"]
    api.delete("Job", namespace, name)
    eventually("the Job is gone", lambda: api.get("Job", namespace, name) is None)
    api.create(stranger(namespace, name))
    again = operators.start().wait_active()
    job = eventually("the conflict is told", lambda: conflicting(api, namespace))
    assert name in condition(job, "Reconciling")["message"]
    assert all(each["type"] != "Stalled" for each in job["status"]["conditions"])
    found = api.get("Job", namespace, name)
    assert found is not None
    assert "ownerReferences" not in found["metadata"]
    # After the name is free, the run continues by itself.
    kubelet.held.clear()
    api.delete("Job", namespace, name)
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", again)


def conflicting(api: Api, namespace: str) -> Object | None:
    job = api.get("FineTuneJob", namespace, "routing")
    conditions = job["status"].get("conditions", ()) if job is not None else ()
    is_told = any((c["type"], c["reason"]) == ("Reconciling", "NameConflict") for c in conditions)
    return job if is_told else None


def stranger(namespace: str, name: str) -> Object:
    container = {"name": "theirs", "image": "registry.example/theirs:1"}
    spec = {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def test_a_run_that_was_deleted_and_made_again_does_not_adopt_the_old_runs_job(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    kubelet.held.add("train")
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    old = eventually("the first train Job exists", lambda: jobs_of_stage(api, namespace, "train"), 60)[0]
    eventually("its pod runs", lambda: "train" in kubelet.started)
    api.delete("FineTuneJob", namespace, "routing")
    api.create(manifests.finetunejob(namespace))

    def successor() -> Object | None:
        uid = old["metadata"]["uid"]
        return next((j for j in jobs_of_stage(api, namespace, "train") if j["metadata"]["uid"] != uid), None)

    new = eventually("the second run has a train Job of its own", successor, 60, lambda: operator.log)
    assert new["metadata"]["name"] != old["metadata"]["name"]
    kubelet.held.clear()
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert new["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    eventually(
        "the old run's Job is gone", lambda: api.get("Job", namespace, old["metadata"]["name"]) is None
    )
    assert kubelet.started.count("train") == 2


def test_finished_is_sticky(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    until_settled(audit, operators.user)
    started = list(kubelet.started)
    mark = audit.mark()
    for job in api.list("Job", namespace):
        api.delete("Job", namespace, job["metadata"]["name"])
    eventually("all children are gone", lambda: not api.list("Job", namespace))
    operator.kill()
    again = operators.start("operator-1").wait_active()
    until_all_reconciled(api, namespace, again)
    until_settled(audit, operators.user)
    assert created_jobs(audit, mark, namespace) == []
    assert kubelet.started == started


def test_a_run_restored_without_its_status_does_not_train_again(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    until_settled(audit, operators.user)
    assert operator.terminate() == 0
    for job in api.list("Job", namespace):
        api.delete("Job", namespace, job["metadata"]["name"])
    lost = dict.fromkeys((api.get("FineTuneJob", namespace, "routing") or {})["status"])
    fresh = {**lost, "observedGeneration": -1}
    api.patch("FineTuneJob", namespace, "routing", {"status": fresh}, "status")
    mark = audit.mark()
    again = operators.start().wait_active()
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", again)
    assert condition(job, "Ready")["reason"] == "Restored"
    assert created_jobs(audit, mark, namespace) == []


def test_of_two_operators_one_works_and_the_other_takes_over_when_it_is_killed(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    kubelet.held.add("train")
    first = operators.start("operator-0").wait_active()
    second = operators.start("operator-1").wait_ready()
    mark = audit.mark()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    until_started(kubelet, "train", first)
    assert second.metric("finetune_active") == 0
    passes = second.metric('finetune_reconcile_seconds_count{kind="FineTuneJob",result="ok"}')
    assert passes is None, "the standby has worked"
    first.kill()
    kubelet.held.clear()
    eventually("the standby is active", second.is_active, 10 * LEASE_SECONDS, lambda: second.log)
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", second)
    assert len([name for name in created_jobs(audit, mark, namespace) if "-train-" in name]) == 1


def test_an_operator_that_was_frozen_writes_nothing_when_it_wakes_up_and_stands_by(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    first = operators.start("operator-0").wait_active()
    second = operators.start("operator-1").wait_ready()
    mark = audit.mark()
    first.process.send_signal(signal.SIGSTOP)
    # After it resumes, it gets these events, and another process holds the Lease.
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    eventually("the standby is active", second.is_active, 10 * LEASE_SECONDS, lambda: second.log)
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", second)
    until_settled(audit, operators.user)
    done = audit.mark()
    first.process.send_signal(signal.SIGCONT)
    eventually("it has noticed", lambda: first.metric("finetune_active") == 0, describe=lambda: first.log)
    assert audit.writes(done, operators.user) == []
    assert second.is_active()
    assert len([name for name in created_jobs(audit, mark, namespace) if "-train-" in name]) == 1


def test_a_graceful_end_hands_over_at_once(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    first = operators.start("operator-0", LEASE_DURATION_SECONDS="300").wait_active()
    second = operators.start("operator-1", LEASE_DURATION_SECONDS="15").wait_ready()
    assert first.terminate() == 0
    # Without a release, the Lease would expire after five minutes.
    second.wait_active()


def until_started(kubelet: FakeKubelet, stage: str, operator: Operator) -> None:
    eventually(f"{stage} runs", lambda: stage in kubelet.started, 60, lambda: operator.log)


def test_an_operator_that_is_killed_in_every_stage_doubles_and_loses_nothing(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    mark = audit.mark()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    for stage in ("prepare", "preflight", "train", "evaluate"):
        kubelet.held.add(stage)
        operator = operators.start().wait_active()
        until_started(kubelet, stage, operator)
        operator.kill()
        kubelet.held.clear()
    operator = operators.start().wait_active()
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert sorted(kubelet.started) == ["evaluate", "preflight", "prepare", "train"]
    assert len(created_jobs(audit, mark, namespace)) == 4
    assert len(api.list("Checkpoint", namespace)) == len(job["status"]["checkpoints"]) == 1


def test_an_operator_whose_lease_is_taken_away_stops_working_until_it_has_it_again(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    operator = operators.start().wait_active()
    intruder = {"holderIdentity": "intruder", "leaseDurationSeconds": 4}
    api.patch("Lease", namespace, "finetune-operator", {"spec": intruder})
    eventually(
        "it has noticed", lambda: operator.metric("finetune_active") == 0, describe=lambda: operator.log
    )
    mark = audit.mark()
    api.create(manifests.dataset(namespace))
    api.patch("Lease", namespace, "finetune-operator", {"spec": {"leaseDurationSeconds": 5}})
    eventually("the intruder's lease ran out", operator.is_active, describe=lambda: operator.log)
    lease = api.get("Lease", namespace, "finetune-operator")
    assert lease is not None
    taken = datetime.fromisoformat(lease["spec"]["acquireTime"])
    assert [asked for asked in audit.writes(mark, operators.user) if asked.at < taken] == []
    until_condition(api, (namespace, "Dataset", "tickets"), "Ready", operator)


def test_without_a_restriction_every_namespace_is_served(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    other = f"{namespace}-other"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": other}}).raise_for_status()
    for where in (namespace, other):
        api.create(manifests.dataset(where))
    api.create(manifests.claim(other, "artifacts"))
    operators.start(WATCH_NAMESPACES="").wait_active()
    for where in (namespace, other):
        eventually(f"{where} is served", lambda where=where: jobs_of_stage(api, where, "prepare"))  # type: ignore[misc]


def test_a_second_installation_on_the_same_namespaces_waits_until_the_first_is_gone(
    api: Api, namespace: str, operators: Operators
) -> None:
    for lease in ("finetune-operator", "other"):
        api.create(manifests.installation(namespace, lease, namespace))
    first = operators.start().wait_active()
    second = operators.start("other-0", LEASE_NAME="other").wait_ready()
    noticed = "the second one notices the first"
    eventually(
        noticed, lambda: second.metric("finetune_other_installation") == 1, describe=lambda: second.log
    )
    assert f"(lease {namespace}/finetune-operator)" in second.log
    assert second.metric("finetune_active") == 0
    assert api.get("Lease", namespace, "other") is None
    assert first.metric("finetune_other_installation") == 0

    assert first.terminate() == 0
    second.wait_active()
    assert second.metric("finetune_other_installation") == 0
    # Installed again under the old name: the active one stays active, however old the other Lease is.
    again = operators.start("operator-1").wait_ready()
    eventually(noticed, lambda: again.metric("finetune_other_installation") == 1, describe=lambda: again.log)
    assert again.metric("finetune_active") == 0
    assert second.is_active()


def test_an_operator_that_comes_late_catches_up(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    operator = operators.start().wait_active()
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)


def test_deleting_a_run_frees_its_pods_and_keeps_its_records(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, audit: AuditLog
) -> None:
    kubelet.held.add("train")
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    until_started(kubelet, "train", operator)
    mark = audit.mark()
    api.delete("FineTuneJob", namespace, "routing")
    eventually("all pods are gone", lambda: not owned_pods(api, namespace))
    until_settled(audit, operators.user)
    assert created_jobs(audit, mark, namespace) == []
    assert api.list("DatasetVersion", namespace)


def owned_pods(api: Api, namespace: str) -> list[Object]:
    pods = api.list("Pod", namespace)
    return [pod for pod in pods if pod["metadata"]["labels"].get("finetune.dev/owner-kind") == "FineTuneJob"]


@pytest.mark.parametrize("refused", ["count/jobs.batch", "pods"])
def test_a_quota_is_shown_as_what_stands_in_the_way_and_raising_it_helps(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, refused: str
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": {refused: "0"}},
    }
    api.create(quota)
    eventually(
        "the quota is in force",
        lambda: (api.get("ResourceQuota", namespace, "none") or {}).get("status", {}).get("hard"),
    )
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))

    def blocked() -> Object | None:
        found = api.get("Dataset", namespace, "tickets")
        return found if condition(found, "Reconciling").get("reason") == "QuotaExceeded" else None

    found = eventually("the Dataset names the quota", blocked, describe=lambda: operator.log)
    assert f"exceeded quota: none, requested: {refused}=1" in condition(found, "Reconciling")["message"]
    api.delete("ResourceQuota", namespace, "none")
    until_condition(api, (namespace, "Dataset", "tickets"), "Ready", operator)


POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"


def forbid_training(api: Api, namespace: str) -> Object:
    """Create a policy of the platform team, and return a train Job that it refuses."""
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    allowed = (
        "!has(object.metadata.labels) || object.metadata.labels[?'finetune.dev/stage'].orValue('') != 'train'"
    )
    policy = {
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
            "validations": [{"expression": allowed, "message": "no training on Sundays"}],
        },
    }
    binding = {
        "metadata": {"name": namespace},
        "spec": {"policyName": namespace, "validationActions": ["Deny"]},
    }
    api.request("POST", f"{POLICIES}ies", policy).raise_for_status()
    api.request("POST", f"{POLICIES}ybindings", binding).raise_for_status()
    probe = stranger(namespace, "probe")
    probe["metadata"]["labels"] = {"finetune.dev/stage": "train"}
    return probe


def test_what_a_policy_refuses_is_told_and_the_run_goes_on_when_it_is_lifted(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    probe = forbid_training(api, namespace)
    jobs = path_of("Job", namespace)
    eventually("the policy is in force", lambda: api.request("POST", f"{jobs}?dryRun=All", probe).is_error)
    operator = operators.start().wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))

    def refused() -> Object | None:
        found = api.get("FineTuneJob", namespace, "routing")
        return (
            found if "no training on Sundays" in condition(found, "Reconciling").get("message", "") else None
        )

    found = eventually("the run tells what is refused", refused, 60, lambda: operator.log)
    assert condition(found, "Reconciling")["reason"] == "Forbidden"
    api.request("DELETE", f"{POLICIES}ybindings/{namespace}").raise_for_status()
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)


def test_a_namespace_with_a_running_job_can_be_deleted(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    kubelet.held.add("preflight")
    elsewhere = {"POD_NAMESPACE": "default", "LEASE_NAME": f"lease-{namespace}"}
    operator = operators.start(**elsewhere).wait_active()
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    until_started(kubelet, "preflight", operator)
    api.request("DELETE", f"/api/v1/namespaces/{namespace}").raise_for_status()
    kinds = ("FineTuneJob", "Job", "Pod", "DatasetVersion")
    eventually("all that was in it is gone", lambda: not any(api.list(kind, namespace) for kind in kinds), 90)
    for result in ("error", "rejected"):
        labels = f'{{kind="FineTuneJob",result="{result}"}}'
        assert operator.metric(f"finetune_reconcile_errors_total{labels}") is None, operator.log


def test_a_wrong_setting_is_named_before_anything_starts(operators: Operators) -> None:
    operator = operators.start(WORKERS="many")
    assert operator.process.wait(30) == 1
    assert "WORKERS" in operator.log
