"""One stage: create its Job, follow it, read its result. The same for runs and for Datasets."""

from finetune_operator.engine.resources import JOB, NETWORK_POLICY, SERVICE
from finetune_operator.observe import podfailures
from finetune_operator.observe.peerpods import newest_per_index, nodes_of
from finetune_operator.observe.stagetimes import container_state
from finetune_operator.plan import Create, Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.backoff import RETRYABLE_REASONS
from finetune_operator.reconcile.stages.collect import collect
from finetune_operator.reconcile.stages.jobresults import is_foreign, last_word, pods_of, success
from finetune_operator.reconcile.stages.jobstate import foreign, has_ended, left_behind, until_ended
from finetune_operator.reconcile.stages.request import Outcome, StageFailed, StageRequest
from finetune_operator.reconcile.stages.retry import retry_stage
from finetune_operator.reconcile.stages.running import under_way, until_settled
from finetune_operator.reconcile.steps import Blocked, Failed, Working
from finetune_operator.status.reasons import EventReason, Reason


def advance(draft: Draft, request: StageRequest) -> Outcome:
    """The stage's result, or how far it is; starts its Job when there is none.

    A Job that disappeared before its result was recorded is created again, once its pod has ended: the stage
    then finds its own result in the store, or resumes.
    """
    snapshot = draft.snapshot
    job = snapshot.children[JOB].get(request.name)
    if job is None:
        left = left_behind(snapshot, request.name)
        if left:
            waits = f"waiting for pod {left[0]['metadata']['name']} of a deleted {request.stage} Job to end"
            return until_ended(left, Reason.QUEUED, waits, snapshot.now)
        return _start(draft, request)
    if is_foreign(job, request.expected, snapshot):
        return foreign(job)
    pods = pods_of(job, snapshot)
    if "deletionTimestamp" in job["metadata"]:
        waits = f"waiting for the previous {request.stage} pod{'s' if nodes_of(job) > 1 else ''} to end"
        return until_ended(pods, Reason.QUEUED, waits, snapshot.now)
    if has_ended(job, "Complete"):
        result = success(pods, job, request.expected)
        return result or until_settled(job, "Complete", request, snapshot.now) or collect(draft, request)
    if has_ended(job, "Failed"):
        return _failed(draft, job, pods, request)
    _name_peers(draft, request)
    return under_way(job, pods, request, snapshot.now)


def _start(draft: Draft, request: StageRequest) -> Working | Blocked | Failed:
    job = request.build()
    if isinstance(job, Blocked | Failed):
        return job
    _name_peers(draft, request)
    if request.peers is not None:
        draft.create.append(Create(request.peers.key(), same="Unread"))
    draft.start_job(job)
    draft.event(EventReason.STAGE_STARTED, f"{request.stage} started as Job {request.name}")
    pods = "pods are" if nodes_of(job) > 1 else "pod is"
    return Working(Reason.QUEUED, f"the {request.stage} {pods} being created")


def _name_peers(draft: Draft, request: StageRequest) -> None:
    if request.peers is None:
        return
    wanted = (
        (request.peers.service, draft.snapshot.children[SERVICE]),
        (request.peers.policy, draft.snapshot.children[NETWORK_POLICY]),
    )
    draft.create += [Create(each) for each, there in wanted if each["metadata"]["name"] not in there]


def _failed(draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest) -> Outcome:
    if not pods or any("terminated" not in container_state(pod) for pod in newest_per_index(pods)):
        settling = until_settled(job, "Failed", request, draft.snapshot.now)
        if settling is not None:
            return settling
    result = last_word(pods, job, request.expected)
    if result is None or result.outcome != "Failed":
        trouble = podfailures.failure(job, pods)
        return StageFailed(trouble.reason, trouble.message, None)
    if result.reason not in RETRYABLE_REASONS:
        return StageFailed(result.reason or Reason.STAGE_FAILED, result.message, result)
    return retry_stage(draft, job, result, request)
