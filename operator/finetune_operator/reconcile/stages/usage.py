# SPDX-License-Identifier: Apache-2.0
"""Progress, times and failures of an object's stages, from the reports and the timestamps of its pods."""

from typing import Any

from finetune_operator.api.finetune_job_status import ProgressStatus
from finetune_operator.api.pod_resources import CPU
from finetune_operator.api.stage_status import StageUsage
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import DEVICES
from finetune_operator.observe.device_usage import devices_per_pod, profile_of
from finetune_operator.observe.pod_status import Price, container_state, has_ended, has_started, with_cost
from finetune_operator.observe.pod_termination import with_ended
from finetune_operator.observe.stage_usage import finished_stage, stage_usage
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.losses import with_repeated
from finetune_operator.reconcile.stages.request import Outcome, StageFailed
from finetune_operator.reconcile.stages.stagepass import StagePass
from finetune_operator.reconcile.steps import Blocked, Halt, Working
from finetune_operator.status import progress
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


def record(run: StagePass[Any], stage: Stage, outcome: Outcome) -> StageResult | StageFailed | Halt:
    """Take what happened to a stage into the status; the caller decides what its end means."""
    follow(run, stage)
    if isinstance(outcome, Working):
        run.update(progress=progress.entered(run.status.progress, stage))
    has_ended_pod = isinstance(outcome, StageResult | StageFailed | Retry) or _lost_a_pod(run, stage, outcome)
    if has_ended_pod or _has_begun(run, stage):
        count_usage(run, stage)
    if isinstance(outcome, Retry):
        run.update(retry=outcome.status)
        return outcome.halt
    return outcome


def follow(run: StagePass[Any], stage: Stage) -> None:
    """Take the newest progress report into the status, and with it the time used so far.

    Neither is written without the other, so that a pass in which nothing happened writes nothing. The pods of
    an earlier Job may still report; only those of the present one count.
    """
    report, job = run.snapshot.progress, run.snapshot.children[JOB].get(run.job_names(stage).stage)
    if report is None or report.stage != stage or job is None:
        return
    if all(pod["metadata"]["uid"] != report.pod for pod in pods_of(job, run.snapshot)):
        return
    new = progress.merged(run.status.progress, stage, report.progress)
    if new != run.status.progress:
        run.update(progress=new)
        count_usage(run, stage)


def _has_begun(run: StagePass[Any], stage: Stage) -> bool:
    """Whether a pod of a stage without devices has started, and the status does not show it yet.

    Its condition changes as well, so this needs no write of its own. Stages with devices report progress.
    """
    job, usage = run.snapshot.children[JOB].get(run.job_names(stage).stage), run.status.usage
    if job is None or DEVICES in job["metadata"].get("labels", {}) or has_finished(run, stage):
        return False
    is_recorded = usage is not None and usage.name == stage
    return not is_recorded and any(map(has_started, pods_of(job, run.snapshot)))


def _lost_a_pod(run: StagePass[Any], stage: Stage, outcome: Outcome) -> bool:
    """Whether a pod has ended and the stage continues.

    The end is recorded at once, because a pod that was preempted, evicted or drained is soon gone. The end of
    the last pod is recorded with that of the stage.
    """
    job = run.snapshot.children[JOB].get(run.job_names(stage).stage)
    if job is None or DEVICES not in job["metadata"].get("labels", {}):
        return False
    pods, usage = pods_of(job, run.snapshot), run.status.usage
    continues = any("terminated" not in container_state(pod) and not has_ended(pod) for pod in pods)
    if not isinstance(outcome, Working | Blocked) or not (continues or outcome.reason == Reason.QUEUED):
        return False
    known = usage.ended if usage is not None and usage.name == stage else None
    return with_ended(known or (), pods) != (known or ())


def count_usage(run: StagePass[Any], stage: Stage) -> None:
    """Add the time that the stage's pods have run since it was last counted."""
    job = run.snapshot.children[JOB].get(run.job_names(stage).stage)
    if job is None:
        return
    before = run.status.usage
    usage = stage_usage(before, stage, job, pods_of(job, run.snapshot), run.snapshot.now)
    if usage is None:
        return
    counted = before.device_seconds if before is not None and before.name == stage else 0
    profile = run.snapshot.profiles.get(profile_of(job))
    added = usage.device_seconds - counted
    run.update(usage=usage, cost=with_cost(run.status.cost, added, Price.of(profile)))


def has_finished(run: StagePass[Any], stage: Stage) -> bool:
    """Whether the times of the stage are recorded: its result waits for another stage."""
    usage = run.status.usage
    is_recorded = any(entry.name == stage for entry in run.status.stages)
    return is_recorded and (usage is None or usage.name != stage)


def finish(run: StagePass[Any], stage: Stage, result: StageResult | None = None) -> None:
    """Record the stage's times; they are final until `reopen`.

    Args:
        result: its result, if it has one.
    """
    count_usage(run, stage)
    others = tuple(entry for entry in run.status.stages if entry.name != stage)
    usage = run.status.usage
    times = with_repeated(finished_stage(usage, stage), usage, result, _devices_per_process(run, stage))
    run.update(stages=(*others, times), usage=None, retry=None)


def _devices_per_process(run: StagePass[Any], stage: Stage) -> int:
    """Devices of each process of the stage: one process uses all CPU cores of its pod."""
    job = run.snapshot.children[JOB].get(run.job_names(stage).stage)
    profile = None if job is None else run.snapshot.profiles.get(profile_of(job))
    if job is None or profile is None or profile.spec.accelerator.resource != CPU:
        return 1
    return max(1, devices_per_pod(job))


def reopen(run: StagePass[Any], stage: Stage) -> None:
    """Let the times and the progress of a stage that runs again continue, if they are recorded."""
    times = next((entry for entry in run.status.stages if entry.name == stage), None)
    if times is None:
        return
    loss = None if run.status.progress is None else run.status.progress.loss
    run.update(
        stages=tuple(entry for entry in run.status.stages if entry.name != stage),
        usage=StageUsage(**times.model_dump(), until=run.snapshot.now),
        progress=ProgressStatus(stage=stage, loss=loss),
    )
