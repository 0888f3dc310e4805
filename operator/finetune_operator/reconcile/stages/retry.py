# SPDX-License-Identifier: Apache-2.0
"""Retry a failed stage. A stage that uses devices is retried only after a check of the store without them."""

from dataclasses import replace

from finetune_operator.engine.resources import JOB
from finetune_operator.observe import pod_termination
from finetune_operator.observe.job_problems import job_trouble, recheck_after_seconds
from finetune_operator.observe.pod_status import parse_time
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages import backoff
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.jobresults import is_foreign, last_word, pods_of, success
from finetune_operator.reconcile.stages.jobstate import ended_at, foreign, has_ended, is_unfinished
from finetune_operator.reconcile.stages.request import Answer, Outcome, StageRequest, StartNeeded
from finetune_operator.reconcile.stages.running import until_settled, waiting
from finetune_operator.reconcile.steps import Working
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import FailureReason


def retry_stage(
    draft: Draft, job: Manifest, result: StageResult, request: StageRequest, *, with_probe: bool
) -> Answer:
    """Wait until the next attempt is due, then delete the failed Job so that a new one can be created.

    Args:
        with_probe: whether a Job without devices first checks that the store answers.
    """
    snapshot = draft.snapshot
    failed_at = ended_at(job, "Failed" if has_ended(job, "Failed") else "Complete")
    status = backoff.count_failure(request.retry, request.stage, failed_at)
    due = backoff.due_at(status, request.run)
    retry = backoff.wait_until(due, result, status, snapshot.now)
    probe = snapshot.children[JOB].get(request.names.probe) if with_probe else None
    is_old = probe is not None and parse_time(probe["metadata"]["creationTimestamp"]) < failed_at
    if probe is not None and is_old:
        draft.remove(probe)
    elif probe is not None and is_foreign(probe):
        return foreign(probe)
    elif probe is not None:
        return _probed(draft, job, probe, retry, request)
    if snapshot.now < due:
        return retry
    if not with_probe:
        draft.remove(job)
        return retry
    checking = replace(retry, halt=_checking(request, None))
    return checking if is_old else StartNeeded("probe", checking)


def _checking(request: StageRequest, requeue_after: float | None) -> Working:
    message = f"checking the store without devices before {request.stage} is retried"
    return Working(Reason.CHECKING_STORE, message, requeue_after)


def _probed(draft: Draft, job: Manifest, probe: Manifest, retry: Retry, request: StageRequest) -> Outcome:
    """The outcome of the check: the stage's result, a store that answers, or one that still does not."""
    snapshot, pods = draft.snapshot, pods_of(probe, draft.snapshot)
    if "deletionTimestamp" in probe["metadata"]:
        return replace(retry, halt=_checking(request, None))
    if is_unfinished(probe):
        trouble = job_trouble(probe, pods, snapshot.admission_of(probe), snapshot.now)
        if trouble is None or trouble.reason == Reason.QUEUED:
            later = (
                trouble.recheck_after_seconds
                if trouble is not None
                else recheck_after_seconds(pods, snapshot.now)
            )
            return replace(retry, halt=_checking(request, later))
        return replace(retry, halt=waiting(trouble))
    found = success(pods, probe, request.expected) or last_word(pods, probe, request.expected)
    if found is not None and found.outcome == "Succeeded":
        return found
    is_readable = found is not None and found.reason == FailureReason.ARTIFACT_NOT_FOUND
    if has_ended(probe, "Complete") or is_readable:
        draft.remove(job)
        draft.remove(probe)
        message = f"the store answers; waiting for the previous {request.stage} Job to be deleted"
        return replace(retry, halt=Working(Reason.QUEUED, message))
    failed_at = ended_at(probe, "Failed")
    if found is None:
        settling = until_settled(probe, "Failed", request, snapshot.now)
        if settling is not None:
            return replace(retry, halt=_checking(request, settling.requeue_after))
        trouble = pod_termination.failure(probe, pods)
        found = StageResult(
            stage=request.stage,
            run=request.run,
            outcome="Failed",
            reason=str(trouble.reason),
            message=trouble.message,
        )
    status = backoff.count_failure(retry.status, request.stage, failed_at)
    due = backoff.due_at(status, request.run)
    if snapshot.now >= due:
        draft.remove(probe)
    return backoff.wait_until(due, found, status, snapshot.now)
