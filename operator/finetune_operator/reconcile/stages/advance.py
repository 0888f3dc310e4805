# SPDX-License-Identifier: Apache-2.0
"""Follow the Job of one stage to its result."""

from functools import partial

from finetune_operator.engine.resources import JOB
from finetune_operator.observe import pod_termination
from finetune_operator.observe.pod_status import container_state, newest_per_index, nodes_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.backoff import RETRYABLE_REASONS
from finetune_operator.reconcile.stages.collect import collect
from finetune_operator.reconcile.stages.creatingagain import cannot_start
from finetune_operator.reconcile.stages.givingback import (
    RECHECK_SECONDS,
    give_back,
    held_back,
    is_partly_scheduled,
)
from finetune_operator.reconcile.stages.jobresults import is_foreign, last_word, pods_of, success
from finetune_operator.reconcile.stages.jobstate import foreign, has_ended, running_orphans, until_ended
from finetune_operator.reconcile.stages.request import (
    Answer,
    CannotStart,
    StageFailed,
    StageRequest,
    StartNeeded,
)
from finetune_operator.reconcile.stages.retry import retry_stage
from finetune_operator.reconcile.stages.running import recheck, under_way, until_settled
from finetune_operator.reconcile.stages.start import add_peer_objects
from finetune_operator.reconcile.steps import Working
from finetune_operator.status.reasons import Reason


def advance(draft: Draft, request: StageRequest) -> Answer:
    """The stage's result, how the pass ends, or the Job that is needed next.

    If a Job disappears before its result is recorded, a new one is needed once the old pod has ended: the
    stage then finds its own result in the store, or resumes.
    """
    snapshot = draft.snapshot
    job = snapshot.children[JOB].get(request.names.stage)
    if job is None:
        orphans = running_orphans(snapshot, request.names.stage)
        if orphans:
            name = orphans[0]["metadata"]["name"]
            message = f"waiting for pod {name} of a deleted {request.stage} Job to end"
            return until_ended(orphans, Reason.QUEUED, message, snapshot.now)
        held = held_back(request, snapshot.now)
        if held is not None:
            return held
        created = "pods are" if request.peers is not None else "pod is"
        return StartNeeded("stage", Working(Reason.QUEUED, f"the {request.stage} {created} being created"))
    pods = pods_of(job, snapshot)
    if "deletionTimestamp" in job["metadata"]:
        message = f"waiting for the previous {request.stage} pod{'s' if nodes_of(job) > 1 else ''} to end"
        return until_ended(pods, Reason.QUEUED, message, snapshot.now)
    if is_foreign(job):
        return foreign(job)
    if has_ended(job, "Complete"):
        result = success(pods, job, request.expected)
        answer = result or until_settled(job, "Complete", request, snapshot.now)
        lost = collect if request.row.stores_result else partial(_again, job=job, pods=pods)
        return answer or lost(draft, request)
    if has_ended(job, "Failed"):
        return _failed(draft, job, pods, request)
    add_peer_objects(draft, request)
    waiting = under_way(job, pods, request, snapshot)
    if is_partly_scheduled(job, pods):
        given_back = give_back(draft, job, pods, request)
        if given_back is not None:
            return given_back
        waiting = recheck(waiting, RECHECK_SECONDS)
    return CannotStart(job, waiting) if cannot_start(job, pods, waiting) else waiting


def _again(draft: Draft, request: StageRequest, job: Manifest, pods: list[Manifest]) -> Working | StageFailed:
    """Delete the Job of a stage whose result was only in its pod, so that it runs again."""
    if any(container_state(pod).get("terminated", {}).get("message") for pod in pods):
        message = (
            f"{request.stage} completed, but the operator cannot read the result of its pod: create a new run"
            " with a trainer image of this release"
        )
        return StageFailed(Reason.RESULT_LOST, message, None)
    draft.remove(job)
    return Working(Reason.QUEUED, f"the pod with the result of {request.stage} is gone: it runs again")


def _failed(draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest) -> Answer:
    if not pods or any("terminated" not in container_state(pod) for pod in newest_per_index(pods)):
        settling = until_settled(job, "Failed", request, draft.snapshot.now)
        if settling is not None:
            return settling
    result = last_word(pods, job, request.expected)
    if result is None or result.outcome != "Failed":
        trouble = pod_termination.failure(job, pods)
        return StageFailed(trouble.reason, trouble.message, None)
    if result.reason not in RETRYABLE_REASONS:
        return StageFailed(result.reason or Reason.STAGE_FAILED, result.message, result)
    return retry_stage(draft, job, result, request, with_probe=request.row.uses_devices)
