# SPDX-License-Identifier: Apache-2.0
"""Read the result of a stage from the store if its pod is gone."""

from finetune_operator.engine.resources import JOB
from finetune_operator.observe.job_problems import job_trouble, recheck_after_seconds
from finetune_operator.observe.pod_status import container_state
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages import backoff
from finetune_operator.reconcile.stages.backoff import RETRYABLE_REASONS, Retry
from finetune_operator.reconcile.stages.jobresults import is_foreign, last_word, pods_of, success
from finetune_operator.reconcile.stages.jobstate import ended_at, foreign, has_ended, is_unfinished
from finetune_operator.reconcile.stages.request import Answer, StageFailed, StageRequest, StartNeeded
from finetune_operator.reconcile.stages.retry import retry_stage
from finetune_operator.reconcile.stages.running import until_settled, waiting
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.status.reasons import Reason


def collect(draft: Draft, request: StageRequest) -> Answer:
    """The result, which a small Job reads from the store."""
    snapshot = draft.snapshot
    job = snapshot.children[JOB].get(request.names.collect)
    reading = Working(Reason.COLLECTING, f"reading the result of {request.stage} from the store")
    if job is None:
        return StartNeeded("collect", reading)
    if is_foreign(job):
        return foreign(job)
    pods = pods_of(job, snapshot)
    if is_unfinished(job):
        return _collecting(job, pods, reading.message, snapshot)
    how = "Complete" if has_ended(job, "Complete") else "Failed"
    result = success(pods, job, request.expected) or last_word(pods, job, request.expected)
    if result is None:
        settling = until_settled(job, how, request, snapshot.now)
        if settling is not None:
            return settling
        if how == "Failed":
            return _lost(request, "its Job failed too")
        return _unread(draft, job, pods, request)
    if result.outcome == "Succeeded":
        return result
    if result.reason in RETRYABLE_REASONS:
        return retry_stage(draft, job, result, request, with_probe=False)
    return _lost(request, result.message)


def _lost(request: StageRequest, why: str) -> StageFailed:
    return StageFailed(
        Reason.RESULT_LOST,
        f"{request.stage} completed, but its pod is gone and its result could not be read from the store:"
        f" {why}",
        None,
    )


def _unread(draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest) -> Retry | StageFailed:
    """The collect Job completed, but its result did not arrive: retry a few times."""
    snapshot = draft.snapshot
    status = backoff.count_failure(request.retry, request.stage, ended_at(job, "Complete"), reading=True)
    messages = (container_state(pod).get("terminated", {}).get("message") for pod in pods)
    text = next((message for message in messages if message), None)
    why = (
        f"the operator cannot read it (it begins {text[:60]!r}): check that the trainer image and the"
        " operator are at most one release apart"
        if text
        else "the pods that read it were removed before the operator saw how they ended: check what deletes"
        " finished pods in this namespace"
    )
    if status.failures >= backoff.MAX_READ_ATTEMPTS:
        return _lost(request, f"{status.failures} attempts; {why}")
    due = backoff.due_at(status, request.run)
    if snapshot.now >= due:
        draft.remove(job)
    seconds = max(1.0, (due - snapshot.now).total_seconds())
    message = (
        f"the result of {request.stage} has not arrived: {why} (attempt {status.failures} of"
        f" {backoff.MAX_READ_ATTEMPTS}; next attempt at {due:%H:%M:%S} UTC)"
    )
    return Retry(Reason.COLLECTING, message, None, status, Blocked(Reason.COLLECTING, message, seconds))


def _collecting(job: Manifest, pods: list[Manifest], reading: str, snapshot: Snapshot) -> Working | Blocked:
    now = snapshot.now
    trouble = job_trouble(job, pods, snapshot.admission_of(job), now)
    if trouble is None:
        return Working(Reason.COLLECTING, reading, recheck_after_seconds(pods, now))
    if trouble.reason == Reason.QUEUED:
        return Working(Reason.COLLECTING, f"{reading}: {trouble.message}", trouble.recheck_after_seconds)
    return waiting(trouble)
