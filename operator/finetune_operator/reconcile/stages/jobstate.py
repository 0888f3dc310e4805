# SPDX-License-Identifier: Apache-2.0
"""The state of a stage's Jobs and pods: running, ended, being deleted, or created by someone else."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import STAGE
from finetune_operator.observe import pod_termination
from finetune_operator.observe.pod_status import describe_pod, parse_time, stage_of
from finetune_operator.observe.pod_status import has_ended as has_pod_ended
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stage_table import find_row
from finetune_operator.status.reasons import Reason

SETTLING_TIME: Final = timedelta(seconds=10)
"""How long a missing result does not count as lost: a Job's end can arrive before its pod's last state."""


def has_ended(job: Manifest, how: str) -> bool:
    """Whether the Job has the condition `Complete` or `Failed`."""
    return any(
        condition["type"] == how and condition["status"] == "True"
        for condition in job.get("status", {}).get("conditions") or ()
    )


def is_unfinished(job: Manifest) -> bool:
    """Whether the Job can still have or start a running pod."""
    return not has_ended(job, "Complete") and not has_ended(job, "Failed")


def is_stage_running(snapshot: Snapshot) -> bool:
    """Whether a stage's Job is unfinished, so that the pass creates nothing."""
    return any(is_unfinished(job) and has_result(job) for job in snapshot.children[JOB].values())


def has_result(job: Manifest) -> bool:
    """Whether the Job runs a stage with a result, and does not work for another stage."""
    row = find_row(job["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.running is not None


def running_orphans(snapshot: Snapshot, job: str) -> list[Manifest]:
    """Pods that still run after their Job of this name was deleted. No other pod may run next to them."""
    return [pod for pod in snapshot.orphans.get(job, ()) if not has_pod_ended(pod)]


def until_ended(pods: Iterable[Manifest], reason: str, message: str, now: datetime) -> Working | Blocked:
    """Wait for pods that are being deleted; report a lost node, on which a pod cannot end."""
    overdue: list[float] = []
    for pod in pods:
        trouble = pod_termination.node_trouble(pod, describe_pod(stage_of(pod), pod), now)
        if trouble is not None:
            return Blocked(trouble.reason, trouble.message, None)
        seconds = pod_termination.until_overdue(pod, now)
        overdue += [seconds] if seconds is not None else []
    return Working(reason, message, min(overdue, default=None))


def ended_at(job: Manifest, how: str) -> datetime:
    """Time at which the Job got the condition `Complete` or `Failed`, which it has."""
    return next(
        parse_time(condition["lastTransitionTime"])
        for condition in job["status"]["conditions"]
        if condition["type"] == how and condition["status"] == "True"
    )


def foreign(job: Manifest) -> Blocked:
    """How a pass ends if someone else created a Job with the name of an operator's Job."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    return Blocked(
        Reason.NAME_CONFLICT,
        f"Job {name} has the name and owner of a Job of the operator, but the operator did not create it."
        f" Find out who created it, and delete it (kubectl delete job {name} -n {namespace}); the operator"
        " then creates its own",
    )
