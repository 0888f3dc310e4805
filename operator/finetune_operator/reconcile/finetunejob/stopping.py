# SPDX-License-Identifier: Apache-2.0
"""The time limit of a stage: a run that has used its time is stopped, with its state saved."""

from dataclasses import dataclass, replace

from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.observe.stage_usage import stage_usage
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.jobstate import is_unfinished, running_orphans, until_ended
from finetune_operator.reconcile.stages.stop import stop
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.status.conditions import find
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a stage of a run may use devices."""

    stage: Stage
    seconds: int
    advice: str
    """How to raise it."""


def limit_of(run: Run, stage: Stage) -> Limit | None:
    """The smaller of the run's own limit and its profile's."""
    own = run.job.spec.compute.max_run_seconds
    profile = run.snapshot.profiles.get(run.status.resolved.profile or "")
    offered = profile.spec.limits.run_seconds if profile is not None else None
    if own is not None and (offered is None or own <= offered):
        return Limit(stage, own, f"raise spec.compute.maxRunSeconds of FineTuneJob {run.job.name}")
    if profile is None or offered is None:
        return None
    return Limit(
        stage, offered, f"ask the platform team to raise limits.runSeconds of ComputeProfile {profile.name}"
    )


def at_limit(run: Run, limit: Limit) -> Halt | None:
    """Stop a stage that has used its time; None before that, and if the stage has ended by itself."""
    snapshot, name = run.snapshot, stage_job_name(run.job, limit.stage)
    job = snapshot.children[JOB].get(name)
    if _seconds_left(run, limit) > 0 or (job is not None and not is_unfinished(job)):
        return None
    pods = running_orphans(snapshot, name)
    if job is not None:
        stop(run, job)
        pods += pods_of(job, snapshot)
    if job is not None or pods:
        message = "the time limit of the run is reached; waiting for the pods to save their state and end"
        return until_ended(pods, Reason.SUSPENDING, message, snapshot.now)
    last = run.status.progress
    where = f" at step {last.step} of {last.total_steps}" if last and last.stage == limit.stage else ""
    message = (
        f"{limit.stage} has used devices for {limit.seconds} seconds, and the operator stopped it{where} with"
        f" its state saved; to continue from there, {limit.advice}"
    )
    before = find(run.job.status.conditions, ConditionType.STALLED)
    if before is None or before.reason != Reason.MAX_RUN_SECONDS_EXCEEDED:
        run.draft.event(EventReason.STAGE_FAILED, message, "Warning")
    return Failed(Reason.MAX_RUN_SECONDS_EXCEEDED, message)


def within(run: Run, limit: Limit, halt: Halt) -> Halt:
    """The same, with another pass when the time is used up."""
    if not isinstance(halt, Working | Blocked):
        return halt
    seconds = max(1.0, _seconds_left(run, limit))
    soonest = seconds if halt.requeue_after is None else min(halt.requeue_after, seconds)
    return replace(halt, requeue_after=soonest)


def _seconds_left(run: Run, limit: Limit) -> float:
    """Seconds that the stage may still use. What its pods use now is counted, but not written."""
    usage, stage = run.status.usage, limit.stage
    job = run.snapshot.children[JOB].get(stage_job_name(run.job, stage))
    if job is not None:
        usage = stage_usage(usage, stage, job, pods_of(job, run.snapshot), run.snapshot.now)
    used = usage.seconds if usage is not None and usage.name == stage else 0
    return limit.seconds - used
