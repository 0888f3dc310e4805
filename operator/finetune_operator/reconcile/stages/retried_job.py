# SPDX-License-Identifier: Apache-2.0
"""Follow a Job whose end is its result, and repeat it every few minutes while it fails."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from finetune_operator.observe import pod_termination
from finetune_operator.observe.job_problems import job_trouble, recheck_after_seconds
from finetune_operator.observe.pod_status import container_state
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.pass_outcome import RETRY_SECONDS, Blocked, Working
from finetune_operator.reconcile.plan_builder import PlanBuilder
from finetune_operator.reconcile.stages.jobs import (
    SETTLING_TIME,
    ended_at,
    has_ended,
    pods_of,
    wait_until_ended,
)
from finetune_operator.status.reasons import Reason

Result = TypeVar("Result", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The Job failed, and is deleted when the next attempt is due."""

    message: str
    retry_seconds: float
    """Seconds until then."""


def follow(
    draft: PlanBuilder, job: Manifest, reason: Reason, doing: str
) -> Working | Blocked | AttemptFailed | None:
    """The state of the Job; None once it is complete.

    Args:
        reason: reason while it runs.
        doing: sentence about what it does, for messages.
    """
    now, pods = draft.snapshot.now, pods_of(job, draft.snapshot)
    if "deletionTimestamp" in job["metadata"]:
        return wait_until_ended(pods, reason, f"{doing}: the pod of the previous attempt is ending", now)
    if has_ended(job, "Complete"):
        return None
    if has_ended(job, "Failed"):
        left = ended_at(job, "Failed") + timedelta(seconds=RETRY_SECONDS) - now
        if left <= timedelta():
            draft.remove(job)
        return AttemptFailed(pod_termination.find_failure(job, pods).message, max(1.0, left.total_seconds()))
    trouble = job_trouble(job, pods, draft.snapshot.admission_of(job), now)
    if trouble is None:
        return Working(reason, doing, recheck_after_seconds(pods, now))
    message = f"{doing}: {trouble.message}"
    if trouble.expected:
        return Working(reason, message, trouble.recheck_after_seconds)
    return Blocked(trouble.reason, message, None)


def result(
    draft: PlanBuilder, job: Manifest, model: type[Result], reason: Reason, doing: str
) -> Result | Working:
    """The result in the termination message of a complete Job, or how the pass ends without it.

    A Job whose pod is gone is deleted: its work is in the store, where another Job finds it.

    Args:
        model: type of the result.
        reason: reason while the result is awaited.
        doing: sentence about what the Job does, for messages.
    """
    for pod in pods_of(job, draft.snapshot):
        ended = container_state(pod).get("terminated", {})
        if ended.get("exitCode") == 0:
            try:
                return model.model_validate_json(ended.get("message", ""))
            except ValidationError:
                continue
    settles = ended_at(job, "Complete") + SETTLING_TIME - draft.snapshot.now
    if settles > timedelta():
        return Working(reason, doing, settles.total_seconds())
    draft.remove(job)
    return Working(reason, f"{doing} again, because the pod with its result is gone")
