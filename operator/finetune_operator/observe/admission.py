# SPDX-License-Identifier: Apache-2.0
"""Admission by Kueue: why a suspended Job waits, and the position of Jobs and pods in their queues.

The reason is from the Job's Workload, the position from Kueue's visibility API.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from finetune_operator.api.labels import PROFILE
from finetune_operator.engine.errors import is_refusal
from finetune_operator.manifests.queueing import PRIORITY_LABEL, QUEUE_LABEL
from finetune_operator.observe.pod_status import Trouble, condition, nodes_of, parse_time, quote, stage_of
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

LAST_EXACT: Final = 10
STEPS: Final = (11, 21, 51, 101, 201, 501)
"""Positions after `LAST_EXACT` are shown as the largest of these that is not above them.

When the head of a long queue is admitted, all positions change, but at most 16 of the texts.
"""


class QueuePosition(NamedTuple):
    """Positions of one Workload; 1 is the head."""

    local_queue: int
    cluster_queue: int

    def __str__(self) -> str:
        return f"at position {_shown(self.local_queue)} ({_shown(self.cluster_queue)} in its ClusterQueue)"


Positions = Mapping[str, QueuePosition]
"""Positions by the uid of the Job or pod."""
UNKNOWN: Final[Positions] = MappingProxyType({})


def slim_summary(summary: Manifest) -> Manifest:
    """The positions in a `PendingWorkloadsSummary`, which is ten times as large.

    `positionInLocalQueue` is not used: Kueue v0.17 also lists and counts the Workloads of LocalQueues that
    have the same name in other namespaces.
    """
    positions: dict[str, QueuePosition] = {}
    counts: Counter[str] = Counter()
    for item in sorted(summary.get("items") or (), key=_position):
        namespace = item["metadata"]["namespace"]
        counts[namespace] += 1
        position = QueuePosition(counts[namespace], _position(item) + 1)
        owners = item["metadata"].get("ownerReferences") or ()
        positions |= {owner["uid"]: position for owner in owners}
    return {"kind": summary["kind"], "metadata": {}, "positions": positions}


def _position(item: Manifest) -> int:
    """Position in the ClusterQueue, from 0. A version of the API may omit 0."""
    position: int = item.get("positionInClusterQueue", 0)
    return position


def _shown(position: int) -> str:
    if position <= LAST_EXACT:
        return str(position)
    return f"{max(step for step in STEPS if step <= position)} or later"


MAX_TIME_WITHOUT_WORKLOAD: Final = timedelta(seconds=60)
"""Time after which a queued Job without a Workload is reported.

Kueue makes one within a second, and the list in which the operator looks for it is at most 45 s old.
"""
MIN_RECHECK_SECONDS: Final = 2.0
MAX_RECHECK_SECONDS: Final = 60.0
"""Bounds of the time between two passes over a waiting Job, which is a quarter of the time waited so far."""
INADMISSIBLE: Final = "Inadmissible"
"""Reason of `QuotaReserved` for a Workload that no free quota will admit."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What keeps a Job without pods.

    Attributes:
        workload: its Workload, or a refusal; None if there is none.
        position: its position in the queue; None if it is unknown.
        refused: event about its last pod that the API server refused; None if it is unknown.
    """

    workload: Manifest | None = None
    position: QueuePosition | None = None
    refused: Manifest | None = None


def admission_trouble(job: Manifest, admission: Admission, now: datetime) -> Trouble:
    """The reason that a suspended Job waits.

    Args:
        job: the Job.
        admission: what Kueue reports about it.
        now: time of the pass.
    """
    stage, name = stage_of(job), job["metadata"]["name"]
    queue, workload = job["metadata"].get("labels", {}).get(QUEUE_LABEL), admission.workload
    waited = now - waiting_since(job)
    later = recheck_seconds(waited)
    if queue is None and (workload is None or is_refusal(workload)):
        return _queued(
            f"Job {name} is suspended, and not by the operator: kubectl get job {name} -o yaml shows who set"
            " spec.suspend",
            later,
        )
    waits = f"the {stage} Job waits in LocalQueue {queue}" if queue else f"the {stage} Job waits in its queue"
    if workload is None:
        if waited < MAX_TIME_WITHOUT_WORKLOAD:
            return _queued(f"{waits} for admission", later)
        return Trouble(
            Reason.NOT_ADMITTED,
            f"{waits}, but Kueue has made no Workload for it: check that Kueue runs, that batch/job is one of"
            f" its integrations, and that it manages this namespace{_unknown_priority(job)}",
            recheck_after_seconds=later,
        )
    if is_refusal(workload):
        return _unreadable(job, waits, workload, later)
    return _waiting(job, waits, workload, admission.position, later)


def changed_parallelism(job: Manifest) -> Trouble | None:
    """The problem of a Job whose number of pods at a time was changed after the operator created it."""
    wanted, found = nodes_of(job), job.get("spec", {}).get("parallelism")
    if found is None or found == wanted:
        return None
    name = job["metadata"]["name"]
    return Trouble(
        Reason.PARALLELISM_CHANGED,
        f"Job {name} has parallelism {found} instead of {wanted}, which the operator does not change: remove"
        " what changed it, for example the annotation kueue.x-k8s.io/job-min-parallelism, and delete the Job"
        f" (kubectl delete job {name}); the operator creates it again, and training resumes",
    )


def _queued(message: str, later: float) -> Trouble:
    return Trouble(Reason.QUEUED, message, expected=True, recheck_after_seconds=later)


def _unreadable(job: Manifest, waits: str, refused: Manifest, later: float) -> Trouble:
    if refused["code"] == HTTPStatus.FORBIDDEN:
        return _queued(
            f"{waits} for admission. The operator may not read the reason: set kueue.enabled in the"
            " operator's chart",
            later,
        )
    if refused["code"] != HTTPStatus.NOT_FOUND:
        return _queued(
            f"{waits} for admission. The operator cannot read the reason: {refused['message']}", later
        )
    profile = job["metadata"].get("labels", {}).get(PROFILE)
    return Trouble(
        Reason.KUEUE_NOT_INSTALLED,
        f"{waits}, but {refused['message']}: install Kueue, or remove kueue.queues from ComputeProfile"
        f" {profile}, and delete the Job (kubectl delete job {job['metadata']['name']})",
        recheck_after_seconds=later,
    )


def _waiting(
    job: Manifest, waits: str, workload: Manifest, position: QueuePosition | None, later: float
) -> Trouble:
    if _is_true_since(workload, "Admitted", waiting_since(job)):
        return _queued(f"the {stage_of(job)} Job is admitted and starts", later)
    if _is_true_since(workload, "QuotaReserved", waiting_since(job)):
        checks = ", ".join(_pending_checks(workload.get("status", {}).get("admissionChecks") or ()))
        return _queued(f"{waits}: its quota is reserved, and it waits for {checks or 'its admission'}", later)
    reserved = condition(workload, "QuotaReserved") or {}
    reason, message = reserved.get("reason"), quote(reserved.get("message"))
    if reason == INADMISSIBLE:
        missing = "LocalQueue" in message and "exist" in message
        return Trouble(
            Reason.QUEUE_NOT_FOUND if missing else Reason.NOT_ADMITTED,
            f"{waits}, and Kueue cannot admit it: {message}",
            recheck_after_seconds=later,
        )
    at = "" if position is None else f", {position}"
    evicted = condition(workload, "Evicted") or {}
    if evicted.get("status") == "True":
        since = f"since it was evicted ({evicted.get('reason')}){at}: {quote(evicted.get('message'))}"
        return _queued(f"{waits} {since}. {message}" if message else f"{waits} {since}", later)
    return _queued(f"{waits}{at}: {message}" if message else f"{waits} for admission{at}", later)


def _is_true_since(workload: Manifest, type_: str, since: datetime) -> bool:
    """Whether the condition is true, and not from before this wait: the Workload was read a while ago."""
    found = condition(workload, type_) or {}
    at = found.get("lastTransitionTime")
    return found.get("status") == "True" and (at is None or parse_time(at) >= since)


def _unknown_priority(job: Manifest) -> str:
    priority = job["metadata"]["labels"].get(PRIORITY_LABEL)
    return f"; and that WorkloadPriorityClass {priority} exists" if priority else ""


def _pending_checks(checks: Iterable[dict[str, Any]]) -> list[str]:
    return [f"AdmissionCheck {each['name']}" for each in checks if each.get("state") != "Ready"]


def waiting_since(obj: Manifest) -> datetime:
    """Start of the present wait of a Job or pod: a preempted Job runs before it waits again."""
    suspended = condition(obj, "Suspended") or {}
    at = suspended.get("lastTransitionTime") if suspended.get("status") == "True" else None
    return parse_time(at or obj["metadata"]["creationTimestamp"])


def recheck_seconds(waited: timedelta) -> float:
    """Seconds until the next request for the reason of a wait."""
    return min(MAX_RECHECK_SECONDS, max(MIN_RECHECK_SECONDS, waited.total_seconds() / 4))
