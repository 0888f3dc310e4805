"""What a stage's Jobs and their pods say: whether they run, have ended, or are in the way."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import STAGE
from finetune_operator.observe import lostnodes
from finetune_operator.observe.peerpods import describe_pod
from finetune_operator.observe.podstatus import has_ended as has_pod_ended
from finetune_operator.observe.podstatus import stage_of
from finetune_operator.observe.stagetimes import parse_time
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stagetable import find_row
from finetune_operator.status.reasons import Reason

SETTLING: Final = timedelta(seconds=10)
"""A Job's end may be seen before its pod's last state; until then a missing result is not called lost."""


def has_ended(job: Manifest, how: str) -> bool:
    """Whether the Job has the condition `Complete` or `Failed`."""
    return any(
        condition["type"] == how and condition["status"] == "True"
        for condition in job.get("status", {}).get("conditions") or ()
    )


def is_unfinished(job: Manifest) -> bool:
    """Whether the Job may still have, or get, a running pod."""
    return not has_ended(job, "Complete") and not has_ended(job, "Failed")


def is_stage_running(snapshot: Snapshot) -> bool:
    """Whether a stage's Job is under way, so that nothing needs to be created."""
    return any(is_unfinished(job) and has_result(job) for job in snapshot.children[JOB].values())


def has_result(job: Manifest) -> bool:
    """Whether the Job runs a stage with a result, and does not work for another stage."""
    row = find_row(job["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.running is not None


def left_behind(snapshot: Snapshot, job: str) -> list[Manifest]:
    """Pods that still run although their Job of this name was deleted: beside them others must not."""
    return [pod for pod in snapshot.orphans.get(job, ()) if not has_pod_ended(pod)]


def until_ended(pods: Iterable[Manifest], reason: str, message: str, now: datetime) -> Working | Blocked:
    """How to wait for pods that are being deleted: patiently, unless the node of one is lost."""
    overdue: list[float] = []
    for pod in pods:
        trouble = lostnodes.node_trouble(pod, describe_pod(stage_of(pod), pod), now)
        if trouble is not None:
            return Blocked(trouble.reason, trouble.message, None)
        left = lostnodes.until_overdue(pod, now)
        overdue += [left] if left is not None else []
    return Working(reason, message, min(overdue, default=None))


def ended_at(job: Manifest, how: str) -> datetime:
    """When the Job got the condition `Complete` or `Failed`, which it has."""
    return next(
        parse_time(condition["lastTransitionTime"])
        for condition in job["status"]["conditions"]
        if condition["type"] == how and condition["status"] == "True"
    )


def foreign(job: Manifest) -> Blocked:
    """How a pass ends that found a Job of this name which the operator did not create."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    return Blocked(
        Reason.NAME_CONFLICT,
        f"Job {name} has the name and owner of a Job of the operator, but the operator did not create it: see"
        f" who did, and delete it: kubectl delete job {name} -n {namespace}; the operator then creates its"
        " own",
    )
