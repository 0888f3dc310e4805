"""Device time that led to no result, by cause: repeated training, and stages that failed."""

from typing import Any, Final

from finetune_operator.api.devicetime import LostCause, StageStatus, StageUsage
from finetune_operator.observe.stageusage import open_device_seconds, sum_lost, with_lost
from finetune_operator.reconcile.stages.stagepass import StagePass
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage

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


def with_repeated(times: StageStatus, usage: StageUsage | None, result: StageResult | None) -> StageStatus:
    """The times of a finished stage, with the training that it repeated as lost.

    Pods that ended for different causes leave open how much each of them lost.
    """
    if result is None or result.train is None:
        return times
    ended = usage.ended if usage is not None and usage.name == times.name else None
    causes = {each.cause for each in ended or () if each.cause != "PeerLost"}
    cause: LostCause = "Unknown"
    if causes == {"Preemption"}:
        cause = "Preemption"
    elif causes == {"Failure"}:
        cause = "Failure"
    lost = with_lost(times.lost, cause, result.train.lost_device_seconds)
    return times.model_copy(update={"lost": lost})


def lose_stage(run: StagePass[Any], stage: Stage, reason: str) -> None:
    """Count the remaining device time of a finished stage as lost, because its object failed."""
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
    return "BadData" if reason in OF_INPUTS else "Failure"
