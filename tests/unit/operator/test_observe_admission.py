# SPDX-License-Identifier: Apache-2.0
"""What a suspended Job waits for, from its Workload as Kueue v0.17 writes it."""

from datetime import UTC, datetime, timedelta

import pytest

from finetune_operator.engine.errors import refusal
from finetune_operator.observe.admission import Admission, admission_trouble, changed_parallelism
from finetune_operator.plan import Manifest

NOW = datetime(2030, 1, 2, 3, 0, 0, tzinfo=UTC)
LACKS = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor gpu"
WAITS = "the train Job waits in LocalQueue gpus"


def job(seconds: float = 0, queue: str | None = "gpus") -> Manifest:
    """A suspended Job that has waited this long."""
    labels = {"finetune.dev/stage": "train", "finetune.dev/profile": "shared"}
    if queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = queue
    created = (NOW - timedelta(seconds=seconds)).isoformat()
    metadata = {"name": "routing-train", "labels": labels, "creationTimestamp": created}
    return {"kind": "Job", "metadata": metadata, "spec": {"suspend": True}}


def workload(*conditions: tuple[str, str, str, str], **status: object) -> Manifest:
    fields = ("type", "status", "reason", "message")
    return {
        "kind": "Workload",
        "metadata": {"name": "job-routing-train-1a2b3"},
        "status": {"conditions": [dict(zip(fields, each, strict=True)) for each in conditions], **status},
    }


@pytest.mark.parametrize(
    ("found", "reason", "message"),
    [
        (workload(("QuotaReserved", "False", "Pending", LACKS)), "Queued", f"{WAITS}: {LACKS}"),
        (workload(), "Queued", f"{WAITS} for admission"),
        (
            workload(("QuotaReserved", "False", "Inadmissible", "LocalQueue gpus doesn't exist")),
            "QueueNotFound",
            f"{WAITS}, and Kueue cannot admit it: LocalQueue gpus doesn't exist",
        ),
        (
            workload(("QuotaReserved", "False", "Inadmissible", "ClusterQueue gpus is inactive")),
            "NotAdmitted",
            f"{WAITS}, and Kueue cannot admit it: ClusterQueue gpus is inactive",
        ),
        (
            workload(
                ("Evicted", "True", "Preempted", "Preempted to accommodate a workload"),
                ("QuotaReserved", "False", "Pending", LACKS),
            ),
            "Queued",
            f"{WAITS} since it was evicted (Preempted): Preempted to accommodate a workload. {LACKS}",
        ),
        (
            workload(
                ("QuotaReserved", "True", "QuotaReserved", ""),
                admissionChecks=[{"name": "provision", "state": "Pending"}, {"name": "ok", "state": "Ready"}],
            ),
            "Queued",
            f"{WAITS}: its quota is reserved, and it waits for AdmissionCheck provision",
        ),
        (
            workload(("QuotaReserved", "True", "", ""), ("Admitted", "True", "Admitted", "")),
            "Queued",
            "the train Job is admitted and starts",
        ),
    ],
)
def test_the_conditions_of_the_workload_are_the_reason(found: Manifest, reason: str, message: str) -> None:
    trouble = admission_trouble(job(), Admission(found), NOW)
    assert (trouble.reason, trouble.message) == (reason, message)
    assert trouble.expected is (reason == "Queued")


@pytest.mark.parametrize(
    ("seconds", "message"), [(30, "the train Job is admitted and starts"), (20, f"{WAITS} for admission")]
)
def test_an_admission_before_the_present_wait_is_not_shown(seconds: float, message: str) -> None:
    """The Workload may have been read before Kueue suspended the Job again."""
    found = workload(("QuotaReserved", "True", "", ""), ("Admitted", "True", "Admitted", ""))
    for each in found["status"]["conditions"]:
        each["lastTransitionTime"] = (NOW - timedelta(seconds=25)).isoformat()
    assert admission_trouble(job(seconds), Admission(found), NOW).message == message


def test_without_the_right_the_message_says_how_to_grant_it() -> None:
    trouble = admission_trouble(job(), Admission(refusal(403, "workloads is forbidden")), NOW)
    assert (trouble.reason, trouble.expected) == ("Queued", True)
    assert "set kueue.enabled" in trouble.message


def test_another_version_of_kueues_api_hides_the_reason_and_is_no_problem() -> None:
    trouble = admission_trouble(job(), Admission(refusal(501, "the API server does not have v1")), NOW)
    assert (trouble.reason, trouble.expected) == ("Queued", True)
    assert trouble.message.endswith("cannot read the reason: the API server does not have v1")


def test_a_job_that_waits_where_kueue_is_gone_names_the_way_out() -> None:
    trouble = admission_trouble(job(), Admission(refusal(404, "workloads are not installed")), NOW)
    assert (trouble.reason, trouble.expected) == ("KueueNotInstalled", False)
    assert "remove kueue.queues from ComputeProfile shared, and delete the Job" in trouble.message


@pytest.mark.parametrize(("seconds", "reason"), [(59, "Queued"), (60, "NotAdmitted")])
def test_a_job_that_kueue_does_not_see_is_reported_after_a_minute(seconds: float, reason: str) -> None:
    assert admission_trouble(job(seconds), Admission(), NOW).reason == reason


def test_a_job_without_a_queue_was_suspended_by_someone() -> None:
    assert (
        "is suspended, and not by the operator"
        in admission_trouble(job(queue=None), Admission(), NOW).message
    )


def test_the_wait_of_a_preempted_job_begins_with_its_suspension() -> None:
    preempted = job(86400)
    since = (NOW - timedelta(seconds=20)).isoformat()
    preempted["status"] = {
        "conditions": [{"type": "Suspended", "status": "True", "lastTransitionTime": since}]
    }
    assert admission_trouble(preempted, Admission(), NOW).recheck_after_seconds == 5


@pytest.mark.parametrize(("waited", "seconds"), [(0, 2), (40, 10), (86400, 60)])
def test_the_workload_is_requested_after_a_quarter_of_the_time_waited(waited: float, seconds: float) -> None:
    assert admission_trouble(job(waited), Admission(workload()), NOW).recheck_after_seconds == seconds


@pytest.mark.parametrize("parallelism", [0, 1, 3])
def test_another_parallelism_than_that_of_the_run_is_a_problem(parallelism: int) -> None:
    spec = {"completionMode": "Indexed", "completions": 2, "parallelism": parallelism}
    trouble = changed_parallelism({**job(), "spec": spec})
    assert trouble is not None
    assert (trouble.reason, trouble.expected) == ("ParallelismChanged", False)
    assert f"parallelism {parallelism} instead of 2" in trouble.message


def test_the_parallelism_of_the_run_is_no_problem() -> None:
    assert changed_parallelism({**job(), "spec": {"completionMode": "NonIndexed", "parallelism": 1}}) is None
    assert changed_parallelism(job()) is None
