# SPDX-License-Identifier: Apache-2.0
"""Device time that led to no result, by cause: repeated training, and stages that failed."""

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from finetune_operator.api.stage_status import EndedPod, LostCause, PodEndCause, StageStatus, StageUsage
from finetune_operator.observe.stage_usage import open_device_seconds, sum_lost, with_lost
from finetune_operator.reconcile.stages.stagepass import StagePass
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
        lost, rest = with_lost(lost, cause, seconds * devices_per_process), rest - seconds
    if rest > ROUNDED_SECONDS:
        lost = with_lost(lost, _only_cause(ended), rest * devices_per_process)
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
                update={"lost": with_lost(times.lost, cause_of(reason), open_device_seconds(times))}
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
        lost = with_lost(usage.lost, cause_of(reason), seconds)
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
