# SPDX-License-Identifier: Apache-2.0
"""Delete Jobs of a Dataset that are no longer needed."""

from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.dataset import Dataset
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import STAGE
from finetune_operator.reconcile.dataset.sourcecheck import check_number, job_names
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.jobstate import is_unfinished
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType

CHILDREN_TTL: Final = timedelta(hours=1)
"""How long the last finished Job and the log of its pod are kept."""


def clear_away(dataset: Dataset, draft: Draft) -> float | None:
    """Delete the Jobs of earlier generations and checks, and those of the last check an hour after its end.

    Returns: seconds until another Job is due for deletion.
    """
    now, number = draft.snapshot.now, check_number(dataset)
    current = _used_names(dataset, number)
    last = _used_names(dataset, number - 1) if number else ()
    end = _ended_at(dataset)
    next_due: float | None = None
    for name, job in draft.snapshot.children[JOB].items():
        if STAGE not in job["metadata"].get("labels", {}) or name in current:
            continue
        if name not in last:
            draft.remove(job)
        elif end is not None and not is_unfinished(job):
            remaining = end + CHILDREN_TTL - now
            if remaining <= timedelta():
                draft.remove(job, "Background")
            else:
                next_due = remaining.total_seconds()
    return next_due


def _used_names(dataset: Dataset, number: int) -> tuple[str, str]:
    names = job_names(dataset, number)
    return names.stage, names.collect


def _ended_at(dataset: Dataset) -> datetime | None:
    refresh, found = dataset.status.refresh, dataset.status.conditions
    if refresh is not None and refresh.checked_at is not None:
        return refresh.checked_at
    end = conditions.find(found, ConditionType.READY) or conditions.find(found, ConditionType.STALLED)
    return None if end is None else end.last_transition_time
