"""Stopping a run's pods so that their state is saved: because it is suspended, or has used its time."""

from dataclasses import dataclass, replace
from typing import get_args

from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import STAGE, stage_job_name
from finetune_operator.observe import stagetimes
from finetune_operator.observe.stagetimes import container_state
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import count_usage
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.jobstate import is_unfinished, left_behind, until_ended
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.status.conditions import find
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage


def stop(run: Run, job: Manifest) -> None:
    """Delete a Job in the foreground: the grace period of its pods saves the state."""
    stage = job["metadata"].get("labels", {}).get(STAGE)
    if stage in get_args(Stage) and not _saves(job, run.snapshot):
        count_usage(run, stage)
    run.draft.remove(job)


def _saves(job: Manifest, snapshot: Snapshot) -> bool:
    """Whether the Job is on its way and a pod of it still runs: that time is counted once the pod has ended,
    because counting it in each pass would make each pass write, and so cause the next."""
    return "deletionTimestamp" in job["metadata"] and any(
        "running" in container_state(pod) for pod in pods_of(job, snapshot)
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """How long the train stage of a run may use devices."""

    seconds: int
    advice: str


def limit_of(run: Run) -> Limit | None:
    """The smaller of the run's own limit and its profile's."""
    own = run.job.spec.compute.max_run_seconds
    profile = run.snapshot.profiles.get(run.status.resolved.profile or "")
    offered = profile.spec.max_run_seconds if profile is not None else None
    if own is not None and (offered is None or own <= offered):
        return Limit(own, f"raise spec.compute.maxRunSeconds of FineTuneJob {run.job.name}")
    if profile is None or offered is None:
        return None
    return Limit(offered, f"have the platform team raise spec.maxRunSeconds of ComputeProfile {profile.name}")


def at_limit(run: Run, limit: Limit) -> Halt | None:
    """Stop training that has used its time; None while it has not, and where it has ended by itself."""
    snapshot, name = run.snapshot, stage_job_name(run.job, "train")
    job = snapshot.children[JOB].get(name)
    if _left(run, limit) > 0 or (job is not None and not is_unfinished(job)):
        return None
    pods = left_behind(snapshot, name)
    if job is not None:
        stop(run, job)
        pods += pods_of(job, snapshot)
    if job is not None or pods:
        waits = "maxRunSeconds is reached; waiting for the pods to save their state and end"
        return until_ended(pods, Reason.SUSPENDING, waits, snapshot.now)
    step = run.status.progress
    where = f" at step {step.step} of {step.total_steps}" if step and step.stage == "train" else ""
    message = (
        f"train has used devices for {limit.seconds} seconds and was stopped{where} with its state saved; to"
        f" continue from there, {limit.advice}"
    )
    before = find(run.job.status.conditions, ConditionType.STALLED)
    if before is None or before.reason != Reason.MAX_RUN_SECONDS_EXCEEDED:
        run.draft.event(EventReason.STAGE_FAILED, message, "Warning")
    return Failed(Reason.MAX_RUN_SECONDS_EXCEEDED, message)


def within(run: Run, limit: Limit, halt: Halt) -> Halt:
    """The same, with another look when the time is used up."""
    if not isinstance(halt, Working | Blocked):
        return halt
    left = max(1.0, _left(run, limit))
    return replace(halt, requeue_after=left if halt.requeue_after is None else min(halt.requeue_after, left))


def _left(run: Run, limit: Limit) -> float:
    """Seconds; what pods use now is counted, and not written."""
    usage = run.status.usage
    job = run.snapshot.children[JOB].get(stage_job_name(run.job, "train"))
    if job is not None:
        usage = stagetimes.stage_usage(usage, "train", job, pods_of(job, run.snapshot), run.snapshot.now)
    used = usage.seconds if usage is not None and usage.name == "train" else 0
    return limit.seconds - used
