"""When a run has ended and when a Dataset is prepared: the rules of their kinds, read from conditions."""

from typing import Final

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.status.conditions import is_true
from finetune_operator.status.reasons import ConditionType, Reason

CONTINUES: Final = frozenset({Reason.NAME_CONFLICT, Reason.NOT_IMPLEMENTED, Reason.MAX_RUN_SECONDS_EXCEEDED})
"""Reasons of a run that is Stalled and continues all the same: when the foreign object is gone (an earlier
release called that Stalled), with the release that implements what it uses, and when the limit is raised."""


def is_finished(job: FineTuneJob) -> bool:
    """Whether a run has ended, well or badly; a run that has ended never starts again."""
    return any(ends_run(each.type, each.status, each.reason) for each in job.status.conditions)


def ends_run(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a FineTuneJob says that the run has ended."""
    failed = type_ == ConditionType.STALLED and reason not in CONTINUES
    return status == "True" and (failed or type_ == ConditionType.READY)


def is_prepared(dataset: Dataset) -> bool:
    """Whether a Dataset is Ready with the spec that it has now."""
    current = dataset.status.observed_generation == dataset.metadata.generation
    return current and is_true(dataset.status.conditions, ConditionType.READY)


def is_settled(dataset: Dataset) -> bool:
    """Whether this generation of a Dataset has been prepared, or cannot be.

    A name conflict is no end, as for runs; nor is what an earlier release did not act on.
    """
    status = dataset.status
    if status.observed_generation != dataset.metadata.generation:
        return False
    return any(ends_dataset(each.type, each.status, each.reason) for each in status.conditions)


def ends_dataset(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a Dataset says that its present generation is prepared, or cannot be."""
    failed = type_ == ConditionType.STALLED and reason not in {Reason.NAME_CONFLICT, Reason.NOT_IMPLEMENTED}
    return status == "True" and (failed or type_ == ConditionType.READY)
