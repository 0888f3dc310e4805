# SPDX-License-Identifier: Apache-2.0
"""Accounting of a stage: progress, device time and cost, from the reports and the timestamps of its pods.

Device time that led to no result is recorded by its cause: repeated training, and stages that failed.
"""

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from finetune_operator.api.finetune_job_status import ProgressStatus
from finetune_operator.api.pod_resources import CPU
from finetune_operator.api.stage_status import EndedPod, LostCause, PodEndCause, StageStatus, StageUsage
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import DEVICES
from finetune_operator.observe.device_usage import (
    add_lost,
    devices_per_pod,
    finish_stage,
    open_device_seconds,
    read_profile,
    stage_usage,
    sum_lost,
)
from finetune_operator.observe.pod_status import Price, add_cost, container_state, has_ended, has_started
from finetune_operator.observe.pod_termination import add_ended_pods
from finetune_operator.reconcile.passes import Blocked, PassOutcome, Working
from finetune_operator.reconcile.stages.jobs import pods_of
from finetune_operator.reconcile.stages.retries import Retry
from finetune_operator.reconcile.stages.stage_request import Outcome, StageFailed, StagePass
from finetune_operator.status import progress
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.results import RepeatedTraining, StageResult
from finetune_trainer.contract.vocabulary import FailureReason, Stage

OF_INPUTS: Final[frozenset[str]] = frozenset(
    {
        Reason.INVALID_SPEC,
        FailureReason.INVALID_CONFIG,
        FailureReason.INVALID_DATA,
        FailureReason.NO_TRAINING_ROWS,
        FailureReason.SEQUENCE_TOO_LONG,
        FailureReason.BASE_MODEL_INVALID,
        FailureReason.BASE_MODEL_MISMATCH,
        FailureReason.LOSS_NOT_FINITE,
        FailureReason.LOSS_DIVERGED,
    }
)
"""Reasons of failures after which the user has to change data, settings or base model."""


CLOCK_SKEW: Final = timedelta(seconds=5)
"""By how much clocks of nodes may differ; a node reports the end of a container in whole seconds."""
LATEST_UNIX_SECONDS: Final = datetime(9000, 1, 1, tzinfo=UTC).timestamp()
ROUNDED_SECONDS: Final = 0.1
"""Max difference between a sum and its rounded parts."""


def with_repeated(
    times: StageStatus, usage: StageUsage | None, result: StageResult | None, devices_per_process: int
) -> StageStatus:
    """The times of a finished stage, with the training that it repeated as lost.

    The trainer reports seconds times its processes.
    """
    if result is None or result.train is None:
        return times
    ended = usage.ended or () if usage is not None and usage.name == times.name else ()
    lost, rest = times.lost, result.train.lost_device_seconds
    for cause, seconds in _repeats(result.train.repeats, ended):
        lost, rest = add_lost(lost, cause, seconds * devices_per_process), rest - seconds
    if rest > ROUNDED_SECONDS:
        lost = add_lost(lost, _only_cause(ended), rest * devices_per_process)
    return times.model_copy(update={"lost": lost})


def _repeats(
    repeats: Iterable[RepeatedTraining], ended: Iterable[EndedPod]
) -> Iterator[tuple[LostCause, float]]:
    """The cause of each repetition: the first end of a pod, after the loss and before training resumed,
    except ends that other ends caused.
    """
    left = list(ended)
    for repeat in repeats:
        after, before = _time(repeat.after), _time(repeat.before)
        past = [each for each in left if each.at <= before + CLOCK_SKEW]
        left = [each for each in left if each not in past]
        causes = [each.cause for each in past if each.at >= after - CLOCK_SKEW and each.cause != "PeerLost"]
        yield "Failure" if repeat.out_of_memory else _lost_by(causes[:1]), max(0.0, repeat.device_seconds)


def _time(unix_seconds: float) -> datetime:
    """The time, within the limits of what can be compared: the trainer's message is data."""
    return datetime.fromtimestamp(min(LATEST_UNIX_SECONDS, max(0.0, unix_seconds)), UTC)


def _only_cause(ended: Iterable[EndedPod]) -> LostCause:
    """The cause of time that is not attributed to one end: that of all ends, if they have the same one."""
    return _lost_by({each.cause for each in ended if each.cause != "PeerLost"})


def _lost_by(causes: Collection[PodEndCause]) -> LostCause:
    match [*causes]:
        case ["Preemption" | "Failure" as cause]:
            return cause
    return "Unknown"


def lose_stage(run: StagePass[Any], stage: Stage, reason: str) -> None:
    """Count the remaining device time of a finished stage as lost, because its object failed for `reason`."""
    run.update(
        stages=tuple(
            times.model_copy(
                update={"lost": add_lost(times.lost, cause_of(reason), open_device_seconds(times))}
            )
            if times.name == stage
            else times
            for times in run.status.stages
        )
    )


def settle(run: StagePass[Any]) -> None:
    """The device time so far of a stage with several measurements led to results."""
    usage = run.status.usage
    if usage is not None:
        run.update(usage=usage.model_copy(update={"settled_device_seconds": open_device_seconds(usage)}))


def lose_measurement(run: StagePass[Any], reason: str) -> None:
    """Count the device time since the last `settle` as lost, because a measurement failed."""
    usage = run.status.usage
    if usage is not None:
        seconds = max(0.0, open_device_seconds(usage) - (usage.settled_device_seconds or 0))
        lost = add_lost(usage.lost, cause_of(reason), seconds)
        run.update(usage=usage.model_copy(update={"lost": lost}))


def total_losses(run: StagePass[Any]) -> None:
    """Take the losses of all stages into the cost."""
    usage, cost = run.status.usage, run.status.cost
    lost = sum_lost((*run.status.stages, *(() if usage is None else (usage,))))
    if cost is not None and lost != cost.lost:
        run.update(cost=cost.model_copy(update={"lost": lost}))


def cause_of(reason: str) -> LostCause:
    """Why the device time of a stage is lost that failed for this reason."""
    if reason == Reason.CANCELLED:
        return "Cancelled"
    return "BadData" if reason in OF_INPUTS else "Failure"


def record(run: StagePass[Any], stage: Stage, outcome: Outcome) -> StageResult | StageFailed | PassOutcome:
    """Take what happened to a stage into the status; the caller decides what its end means."""
    follow(run, stage)
    if isinstance(outcome, Working):
        run.update(progress=progress.begin_stage(run.status.progress, stage))
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
    new = progress.merge_report(run.status.progress, stage, report.progress)
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
    return add_ended_pods(known or (), pods) != (known or ())


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
    profile = run.snapshot.profiles.get(read_profile(job))
    added = usage.device_seconds - counted
    run.update(usage=usage, cost=add_cost(run.status.cost, added, Price.of(profile)))


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
    times = with_repeated(finish_stage(usage, stage), usage, result, _devices_per_process(run, stage))
    run.update(stages=(*others, times), usage=None, retry=None)


def _devices_per_process(run: StagePass[Any], stage: Stage) -> int:
    """Devices of each process of the stage: one process uses all CPU cores of its pod."""
    job = run.snapshot.children[JOB].get(run.job_names(stage).stage)
    profile = None if job is None else run.snapshot.profiles.get(read_profile(job))
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
