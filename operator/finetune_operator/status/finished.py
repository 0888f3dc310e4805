# SPDX-License-Identifier: Apache-2.0
"""The end of a run and of the preparation of a Dataset, read from their conditions."""

from typing import Final

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.status.conditions import is_true
from finetune_operator.status.reasons import ConditionType, Reason

RESUMABLE_REASONS: Final = frozenset({Reason.NOT_IMPLEMENTED, Reason.MAX_RUN_SECONDS_EXCEEDED})
"""Reasons of Stalled runs that can continue: with a release that implements the field, and after the limit is
raised."""


def is_finished(job: FineTuneJob | Evaluation) -> bool:
    """Whether a run or an Evaluation has succeeded or failed; a finished one never starts again."""
    return any(ends_run(each.type, each.status, each.reason) for each in job.status.conditions)


def ends_run(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a FineTuneJob or an Evaluation means that it has finished."""
    failed = type_ == ConditionType.STALLED and reason not in RESUMABLE_REASONS
    return status == "True" and (failed or type_ == ConditionType.READY)


def is_cancelled(job: FineTuneJob) -> bool:
    """Whether a run was cancelled, or its pods are ending because of that."""
    return any(each.reason in {Reason.CANCELLING, Reason.CANCELLED} for each in job.status.conditions)


def is_prepared(dataset: Dataset) -> bool:
    """Whether a Dataset is Ready with its current spec."""
    current = dataset.status.observed_generation == dataset.metadata.generation
    return current and is_true(dataset.status.conditions, ConditionType.READY)


def is_settled(dataset: Dataset) -> bool:
    """Whether the current generation of a Dataset is prepared, or cannot be prepared.

    A field that this release did not implement before an upgrade does not settle it.
    """
    status = dataset.status
    if status.observed_generation != dataset.metadata.generation:
        return False
    return any(ends_dataset(each.type, each.status, each.reason) for each in status.conditions)


def ends_dataset(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a Dataset means that it is prepared, or cannot be prepared."""
    failed = type_ == ConditionType.STALLED and reason != Reason.NOT_IMPLEMENTED
    return status == "True" and (failed or type_ == ConditionType.READY)
