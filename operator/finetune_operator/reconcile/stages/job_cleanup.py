# SPDX-License-Identifier: Apache-2.0
"""Cleanup of an object's Jobs: stop those that run, and delete the finished ones with what their pods shared.

The grace period of a stopped pod saves its state.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from finetune_operator.api.labels import STAGE
from finetune_operator.api.meta import Condition
from finetune_operator.engine.resources import JOB, NETWORK_POLICY, SERVICE
from finetune_operator.observe.pod_status import container_state
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, PlanBuilder, Working
from finetune_operator.reconcile.stages.accounting import count_usage
from finetune_operator.reconcile.stages.jobs import (
    has_result,
    is_unfinished,
    pods_of,
    running_orphans,
    wait_until_ended,
)
from finetune_operator.reconcile.stages.stage_request import StagePass
from finetune_operator.status.conditions import find_condition
from finetune_operator.status.reasons import ConditionType, Reason


def stop_all(
    run: StagePass[Any], names: Iterable[str], saves: str, reason: Reason = Reason.SUSPENDING
) -> Working | Blocked | None:
    """Stop all Jobs of a suspended or cancelled object; None once nothing runs.

    Args:
        names: names of its Jobs, also of those that are gone but whose pods may still run.
        saves: what its pods save before they end.
        reason: reason of the condition while they end.
    """
    snapshot = run.snapshot
    running = [child for child in snapshot.children[JOB].values() if is_unfinished(child)]
    orphans = [pod for name in names for pod in running_orphans(snapshot, name)]
    if not running and not orphans:
        return None
    for child in running:
        stop(run, child)
    pods = [*orphans, *(pod for child in running for pod in pods_of(child, snapshot))]
    message = f"waiting for the pods to save {saves} and end"
    return wait_until_ended(pods, reason, message, snapshot.now)


def count_running(run: StagePass[Any]) -> None:
    """Add the time that the pods of unfinished stages have run since it was last counted."""
    for job in run.snapshot.children[JOB].values():
        if is_unfinished(job) and has_result(job):
            count_usage(run, job["metadata"]["labels"][STAGE])


def stop(run: StagePass[Any], job: Manifest) -> None:
    """Delete a Job in the foreground: the grace period of its pods saves the state."""
    if has_result(job) and not _saves(job, run.snapshot):
        count_usage(run, job["metadata"]["labels"][STAGE])
    run.draft.remove(job)


def _saves(job: Manifest, snapshot: Snapshot) -> bool:
    """Whether the Job is being deleted and one of its pods still runs.

    The time of that pod is counted once the pod has ended. Counting it in each pass would make each pass
    write the status, which starts the next pass.
    """
    return "deletionTimestamp" in job["metadata"] and any(
        "running" in container_state(pod) for pod in pods_of(job, snapshot)
    )


def delete_finished_children(
    draft: PlanBuilder, conditions: tuple[Condition, ...], keep_seconds: int
) -> float | None:
    """Delete the children `keep_seconds` after the end: finished Jobs, then the pods' Service and
    NetworkPolicy; never a record.

    The Secret with the pods' key goes with the run, because the right to delete one Secret is the right to
    delete all.

    Returns:
        Seconds until they are due; None if nothing is left to delete later.
    """
    snapshot = draft.snapshot
    leftover = [child for child in snapshot.children[JOB].values() if not is_unfinished(child)]
    if len(leftover) == len(snapshot.children[JOB]):
        leftover += [*snapshot.children[SERVICE].values(), *snapshot.children[NETWORK_POLICY].values()]
    end = find_condition(conditions, ConditionType.READY) or find_condition(conditions, ConditionType.STALLED)
    if not leftover or end is None:
        return None
    due = end.last_transition_time + timedelta(seconds=keep_seconds)
    if snapshot.now < due:
        return (due - snapshot.now).total_seconds()
    for child in leftover:
        draft.remove(child, "Background")
    return None
