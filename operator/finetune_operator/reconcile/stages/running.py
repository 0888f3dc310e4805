# SPDX-License-Identifier: Apache-2.0
"""How a pass ends while the Job of a stage is unfinished."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_operator.manifests.jobs import IGNORED_EXIT_CODES, non_retryable_exit_codes
from finetune_operator.observe import pod_termination
from finetune_operator.observe.job_problems import job_trouble, recheck_after_seconds
from finetune_operator.observe.pod_status import (
    Trouble,
    container_state,
    describe_pod,
    newest_per_index,
    nodes_of,
)
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.jobresults import result_of
from finetune_operator.reconcile.stages.jobstate import SETTLING_TIME, ended_at
from finetune_operator.reconcile.stages.request import StageRequest
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import ExitCode


def until_settled(job: Manifest, how: str, request: StageRequest, now: datetime) -> Working | None:
    """Wait for the last state of the ended Job's pods; None after `SETTLING_TIME`."""
    remaining = SETTLING_TIME - (now - ended_at(job, how))
    return None if remaining <= timedelta() else running(request, remaining.total_seconds() + 1)


def under_way(
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
    trouble = result_of(pod, job, request.expected) or pod_termination.failure(job, (pod,))
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
