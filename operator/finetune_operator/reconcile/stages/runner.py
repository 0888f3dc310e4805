# SPDX-License-Identifier: Apache-2.0
"""The runner of a stage: it creates the stage's Job, follows it to its result, and retries it.

- A stage that uses devices is retried only after a check of the store without them.
- The result of a stage whose pod is gone is read from the store.
- A Job whose pods cannot start is created again if a new one would have other pods: pods keep the template of
  their Job, so a corrected ComputeProfile would not reach them.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.engine.resources import JOB, NETWORK_POLICY, SERVICE
from finetune_operator.manifests.configs import collect_config
from finetune_operator.manifests.jobs import IGNORED_EXIT_CODES, build_stage_job, non_retryable_exit_codes
from finetune_operator.manifests.pod_origin import find_changed_origin
from finetune_operator.observe import pod_termination
from finetune_operator.observe.job_problems import job_trouble, recheck_after_seconds
from finetune_operator.observe.pod_status import (
    Trouble,
    container_state,
    creation_time,
    describe_pod,
    has_started,
    newest_per_index,
    nodes_of,
)
from finetune_operator.plan import Create, Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Failed, PlanBuilder, Working
from finetune_operator.reconcile.platform.budgets import check_budget
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.stages import retries
from finetune_operator.reconcile.stages.gang_deadlock import (
    RECHECK_SECONDS,
    is_partly_scheduled,
    release_devices,
    wait_after_release,
)
from finetune_operator.reconcile.stages.jobs import (
    SETTLING_TIME,
    ended_at,
    find_last_result,
    find_success,
    has_ended,
    is_foreign,
    is_unfinished,
    pods_of,
    report_foreign_job,
    result_of,
    running_orphans,
    wait_until_ended,
)
from finetune_operator.reconcile.stages.retries import RETRYABLE_REASONS, Retry
from finetune_operator.reconcile.stages.stage_request import (
    BuiltJob,
    JobPurpose,
    Outcome,
    StageFailed,
    StageOwner,
    StageRequest,
    StageSetting,
)
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason


def until_settled(job: Manifest, how: str, request: StageRequest, now: datetime) -> Working | None:
    """Wait for the last state of the ended Job's pods; None after `SETTLING_TIME`."""
    remaining = SETTLING_TIME - (now - ended_at(job, how))
    return None if remaining <= timedelta() else running(request, remaining.total_seconds() + 1)


def report_unfinished(
    job: Manifest, pods: list[Manifest], request: StageRequest, snapshot: Snapshot
) -> Working | Blocked:
    """The stage's Job is unfinished: its pods run, wait, or follow each other."""
    now = snapshot.now
    trouble, later = job_trouble(job, pods, snapshot.admission_of(job), now), recheck_after_seconds(pods, now)
    together = newest_per_index(pods)
    ended = pod_termination.deciding_pod([pod for pod in pods if pod in together])
    if ended is not None and (trouble is None or trouble.expected):
        between = _between_pods(job, ended, request)
        if between is not None:
            return replace(between, requeue_after=later)
    if trouble is not None:
        soonest = min(
            (each for each in (trouble.recheck_after_seconds, later) if each is not None), default=None
        )
        return waiting(replace(trouble, recheck_after_seconds=soonest))
    return running(request, later)


def running(request: StageRequest, requeue_after: float | None = None) -> Working:
    """The stage runs. Its end takes a moment to be counted, which is not worth a status write."""
    reason = request.row.running or Reason.QUEUED
    return Working(reason, f"{request.stage} is running", requeue_after)


def waiting(trouble: Trouble) -> Working | Blocked:
    """Wait for what keeps a pod from running."""
    if trouble.expected:
        return Working(trouble.reason, trouble.message, trouble.recheck_after_seconds)
    return Blocked(trouble.reason, trouble.message, trouble.recheck_after_seconds)


def recheck(halt: Working | Blocked, seconds: float) -> Working | Blocked:
    """The same end of a pass, with another one after at most these seconds."""
    soonest = min(seconds, halt.requeue_after) if halt.requeue_after is not None else seconds
    return replace(halt, requeue_after=soonest)


def _between_pods(job: Manifest, pod: Manifest, request: StageRequest) -> Working | None:
    """A pod has ended and its Job has not: its failure is being counted, or the next pod follows.

    None: the pod succeeded.
    """
    stage, code = request.stage, container_state(pod).get("terminated", {}).get("exitCode")
    failed, attempts = job.get("status", {}).get("failed", 0), job["spec"]["backoffLimit"] + 1
    if code == ExitCode.OK:
        return None
    if code in non_retryable_exit_codes(stage) or failed >= attempts:
        return running(request)
    disruption = pod_termination.disruption(pod)
    if code in IGNORED_EXIT_CODES or disruption is not None:
        lost = "ended because it lost another pod of the run" if code == ExitCode.PEER_LOST else None
        how = disruption or lost or f"ended with exit code {code}"
        saved = " with its state saved" if code == ExitCode.PREEMPTED_SAVED else ""
        return Working(Reason.QUEUED, f"{describe_pod(stage, pod)} {how}{saved}; the next pod follows")
    trouble = result_of(pod, job, request.expected) or pod_termination.find_failure(job, (pod,))
    if nodes_of(job) > 1:
        return Working(
            Reason.QUEUED,
            f"{stage} failed with {trouble.reason} and is retried (pod failure {max(1, failed)} of"
            f" {attempts}): {trouble.message}",
        )
    return Working(
        Reason.QUEUED,
        f"attempt {max(1, failed)} of {attempts} at {stage} failed with {trouble.reason} and is retried:"
        f" {trouble.message}",
    )


def retry_stage(
    draft: PlanBuilder,
    job: Manifest,
    result: StageResult,
    request: StageRequest,
    owner: StageOwner,
    *,
    with_probe: bool,
) -> Outcome:
    """Wait until the next attempt is due, then delete the failed Job so that a new one can be created.

    Args:
        with_probe: whether a Job without devices first checks that the store answers.
    """
    snapshot = draft.snapshot
    failed_at = ended_at(job, "Failed" if has_ended(job, "Failed") else "Complete")
    status = retries.count_failure(request.retry, request.stage, failed_at)
    due = retries.due_at(status, request.run)
    retry = retries.wait_until(due, result, status, snapshot.now)
    probe = snapshot.children[JOB].get(request.names.probe) if with_probe else None
    is_old = probe is not None and creation_time(probe) < failed_at
    if probe is not None and is_old:
        draft.remove(probe)
    elif probe is not None and is_foreign(probe):
        return report_foreign_job(probe)
    elif probe is not None:
        return _probed(draft, job, probe, retry, request)
    if snapshot.now < due:
        return retry
    if not with_probe:
        draft.remove(job)
        return retry
    checking = replace(retry, halt=_checking(request, None))
    return checking if is_old else _start(draft, request, owner, "probe", checking)


def _checking(request: StageRequest, requeue_after: float | None) -> Working:
    message = f"checking the store without devices before {request.stage} is retried"
    return Working(Reason.CHECKING_STORE, message, requeue_after)


def _probed(
    draft: PlanBuilder, job: Manifest, probe: Manifest, retry: Retry, request: StageRequest
) -> Outcome:
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
    found = find_success(pods, probe, request.expected) or find_last_result(pods, probe, request.expected)
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
        trouble = pod_termination.find_failure(probe, pods)
        found = StageResult(
            stage=request.stage,
            run=request.run,
            outcome="Failed",
            reason=str(trouble.reason),
            message=trouble.message,
        )
    status = retries.count_failure(retry.status, request.stage, failed_at)
    due = retries.due_at(status, request.run)
    if snapshot.now >= due:
        draft.remove(probe)
    return retries.wait_until(due, found, status, snapshot.now)


def collect(draft: PlanBuilder, request: StageRequest, owner: StageOwner) -> Outcome:
    """The result, which a small Job reads from the store."""
    snapshot = draft.snapshot
    job = snapshot.children[JOB].get(request.names.collect)
    reading = Working(Reason.COLLECTING, f"reading the result of {request.stage} from the store")
    if job is None:
        return _start(draft, request, owner, "collect", reading)
    if is_foreign(job):
        return report_foreign_job(job)
    pods = pods_of(job, snapshot)
    if is_unfinished(job):
        return _collecting(job, pods, reading.message, snapshot)
    how = "Complete" if has_ended(job, "Complete") else "Failed"
    result = find_success(pods, job, request.expected) or find_last_result(pods, job, request.expected)
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
        return retry_stage(draft, job, result, request, owner, with_probe=False)
    return _lost(request, result.message)


def _lost(request: StageRequest, why: str) -> StageFailed:
    return StageFailed(
        Reason.RESULT_LOST,
        f"{request.stage} completed, but its pod is gone and its result could not be read from the store:"
        f" {why}",
        None,
    )


def _unread(
    draft: PlanBuilder, job: Manifest, pods: list[Manifest], request: StageRequest
) -> Retry | StageFailed:
    """The collect Job completed, but its result did not arrive: retry a few times."""
    snapshot = draft.snapshot
    status = retries.count_failure(request.retry, request.stage, ended_at(job, "Complete"), reading=True)
    messages = (container_state(pod).get("terminated", {}).get("message") for pod in pods)
    text = next((message for message in messages if message), None)
    why = (
        f"the operator cannot read it (it begins {text[:60]!r}): check that the trainer image and the"
        " operator are at most one release apart"
        if text
        else "the pods that read it were removed before the operator saw how they ended: check what deletes"
        " finished pods in this namespace"
    )
    if status.failures >= retries.MAX_READ_ATTEMPTS:
        return _lost(request, f"{status.failures} attempts; {why}")
    due = retries.due_at(status, request.run)
    if snapshot.now >= due:
        draft.remove(job)
    seconds = max(1.0, (due - snapshot.now).total_seconds())
    message = (
        f"the result of {request.stage} has not arrived: {why} (attempt {status.failures} of"
        f" {retries.MAX_READ_ATTEMPTS}; next attempt at {due:%H:%M:%S} UTC)"
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


CANNOT_START: Final = frozenset(
    {
        Reason.IMAGE_UNAVAILABLE,
        Reason.POD_NOT_STARTING,
        Reason.QUOTA_EXCEEDED,
        Reason.SECRET_NOT_FOUND,
        Reason.UNSCHEDULABLE,
    }
)
"""Reasons of pods that wait for a node, an image, or what else their template names."""


def cannot_start(job: Manifest, pods: list[Manifest], waiting: Working | Blocked) -> bool:
    """Whether no pod of the Job has started, and something that its template names prevents it.

    False for a Job that Kueue holds: another one would be the last in the queue.
    """
    status = job.get("status", {})
    has_ended_pods = bool(status.get("failed") or status.get("succeeded"))
    return (
        waiting.reason in CANNOT_START
        and not job["spec"].get("suspend")
        and not has_ended_pods
        and not any(map(has_started, pods))
    )


def recreate_job(
    draft: PlanBuilder, request: StageRequest, owner: StageOwner, job: Manifest, waiting: Working | Blocked
) -> Working | Blocked:
    """Delete a Job that cannot start if a new one would have other pods. Another pass then creates it.

    Args:
        waiting: how the pass ends if the Job stays.
    """
    trial = owner.trial()
    if trial is None:
        return waiting
    new = build_job(draft.snapshot, request, trial, "stage")
    if isinstance(new, Blocked | Failed | Working):
        return waiting
    images_count = waiting.reason == Reason.IMAGE_UNAVAILABLE
    cause = find_changed_origin(job, new, images_count=images_count)
    if cause is None:
        return waiting
    draft.remove(job)
    owner.adopt(trial)
    name = job["metadata"]["name"]
    return Working(Reason.QUEUED, f"Job {name}, which did not start, is created again: {cause} has changed")


def build_job(snapshot: Snapshot, request: StageRequest, owner: StageOwner, purpose: JobPurpose) -> BuiltJob:
    """The Job for this purpose, or why it cannot be created now."""
    stage: JobStage = request.stage if purpose == "stage" else "collect"
    setting = owner.setting(stage)
    if not isinstance(setting, StageSetting):
        return setting
    inputs, profile = setting.config, setting.job.profile
    config: StageConfig | Blocked | Failed
    if purpose == "stage":
        over = check_budget(profile, request.stage, inputs.owner.namespace, snapshot)
        if over is not None:
            return over
        owner.keep()
        config = owner.config(inputs)
        if not isinstance(config, StageConfig):
            return config
        unsent = check_config(config, profile)
        if unsent is not None:
            return unsent
    else:
        # Reading a stored result shows whether the store answers; a probe also writes a file.
        config = collect_config(inputs, request.stage, probe=purpose == "probe")
    return build_stage_job(inputs.owner, request.names.of_purpose(purpose), stage, config, setting.job)


def _start(
    draft: PlanBuilder, request: StageRequest, owner: StageOwner, purpose: JobPurpose, then: Working | Retry
) -> Outcome:
    """Create the Job, and before a stage's own Job what its pods need of each other.

    Args:
        then: how the pass ends after the Job is created.
    """
    job = build_job(draft.snapshot, request, owner, purpose)
    if isinstance(job, Blocked | Failed | Working):
        return job
    if purpose == "stage":
        add_peer_objects(draft, request)
        if request.peers is not None:
            draft.create.append(Create(request.peers.key, same="Unread"))
        draft.event(
            EventReason.STAGE_STARTED, f"{request.stage} started as Job {request.names.stage}{request.note}"
        )
    draft.start_job(job)
    return then


def add_peer_objects(draft: PlanBuilder, request: StageRequest) -> None:
    """Create the Service and the NetworkPolicies of the stage's pods if they do not exist."""
    services, policies = draft.snapshot.children[SERVICE], draft.snapshot.children[NETWORK_POLICY]
    wanted = [] if request.isolation is None else [(request.isolation, policies)]
    if request.peers is not None:
        wanted += [(request.peers.service, services), (request.peers.policy, policies)]
    draft.create += [
        Create(manifest) for manifest, existing in wanted if manifest["metadata"]["name"] not in existing
    ]


def run_stage(draft: PlanBuilder, request: StageRequest, owner: StageOwner) -> Outcome:
    """The stage's result, or how the pass ends. Creates the Job that is needed next.

    If a Job disappears before its result is recorded, a new one is created once the old pod has ended: the
    stage then finds its own result in the store, or resumes.
    """
    snapshot = draft.snapshot
    job = snapshot.children[JOB].get(request.names.stage)
    if job is None:
        orphans = running_orphans(snapshot, request.names.stage)
        if orphans:
            name = orphans[0]["metadata"]["name"]
            message = f"waiting for pod {name} of a deleted {request.stage} Job to end"
            return wait_until_ended(orphans, Reason.QUEUED, message, snapshot.now)
        held = wait_after_release(request, snapshot.now)
        if held is not None:
            return held
        created = "pods are" if request.peers is not None else "pod is"
        then = Working(Reason.QUEUED, f"the {request.stage} {created} being created")
        return _start(draft, request, owner, "stage", then)
    pods = pods_of(job, snapshot)
    if "deletionTimestamp" in job["metadata"]:
        message = f"waiting for the previous {request.stage} pod{'s' if nodes_of(job) > 1 else ''} to end"
        return wait_until_ended(pods, Reason.QUEUED, message, snapshot.now)
    if is_foreign(job):
        return report_foreign_job(job)
    if has_ended(job, "Complete"):
        result = find_success(pods, job, request.expected)
        answer = result or until_settled(job, "Complete", request, snapshot.now)
        if answer is not None:
            return answer
        stored = request.row.stores_result
        return collect(draft, request, owner) if stored else _again(draft, request, job, pods)
    if has_ended(job, "Failed"):
        return _failed(draft, job, pods, request, owner)
    add_peer_objects(draft, request)
    waiting = report_unfinished(job, pods, request, snapshot)
    if is_partly_scheduled(job, pods):
        given_back = release_devices(draft, job, pods, request)
        if given_back is not None:
            return given_back
        waiting = recheck(waiting, RECHECK_SECONDS)
    if not cannot_start(job, pods, waiting):
        return waiting
    return recreate_job(draft, request, owner, job, waiting)


def _again(
    draft: PlanBuilder, request: StageRequest, job: Manifest, pods: list[Manifest]
) -> Working | StageFailed:
    """Delete the Job of a stage whose result was only in its pod, so that it runs again."""
    if any(container_state(pod).get("terminated", {}).get("message") for pod in pods):
        message = (
            f"{request.stage} completed, but the operator cannot read the result of its pod: create a new run"
            " with a trainer image of this release"
        )
        return StageFailed(Reason.RESULT_LOST, message, None)
    draft.remove(job)
    return Working(Reason.QUEUED, f"the pod with the result of {request.stage} is gone: it runs again")


def _failed(
    draft: PlanBuilder, job: Manifest, pods: list[Manifest], request: StageRequest, owner: StageOwner
) -> Outcome:
    if not pods or any("terminated" not in container_state(pod) for pod in newest_per_index(pods)):
        settling = until_settled(job, "Failed", request, draft.snapshot.now)
        if settling is not None:
            return settling
    result = find_last_result(pods, job, request.expected)
    if result is None or result.outcome != "Failed":
        trouble = pod_termination.find_failure(job, pods)
        return StageFailed(trouble.reason, trouble.message, None)
    if result.reason not in RETRYABLE_REASONS:
        return StageFailed(result.reason or Reason.STAGE_FAILED, result.message, result)
    return retry_stage(draft, job, result, request, owner, with_probe=request.row.uses_devices)
