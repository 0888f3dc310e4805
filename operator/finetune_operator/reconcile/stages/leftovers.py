# SPDX-License-Identifier: Apache-2.0
"""Children of an object that has ended: its finished Jobs, and what their pods shared."""

from datetime import timedelta

from finetune_operator.api.meta import Condition
from finetune_operator.engine.resources import JOB, NETWORK_POLICY, SERVICE
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.jobstate import is_unfinished
from finetune_operator.status.conditions import find
from finetune_operator.status.reasons import ConditionType


def clear_leftovers(draft: Draft, conditions: tuple[Condition, ...], keep_seconds: int) -> float | None:
    """Delete the children `keep_seconds` after the end: finished Jobs, then the pods' Service and
    NetworkPolicy; never a record.

    The Secret with the pods' key goes with the run, because the right to delete one Secret is the right to
    delete all.

    Returns:
        Seconds until they are due; None if nothing is left to delete later.
    """
    snapshot = draft.snapshot
    leftover = [child for child in snapshot.children[JOB].values() if not is_unfinished(child)]
    if len(leftover) == len(snapshot.children[JOB]):
        leftover += [*snapshot.children[SERVICE].values(), *snapshot.children[NETWORK_POLICY].values()]
    end = find(conditions, ConditionType.READY) or find(conditions, ConditionType.STALLED)
    if not leftover or end is None:
        return None
    due = end.last_transition_time + timedelta(seconds=keep_seconds)
    if snapshot.now < due:
        return (due - snapshot.now).total_seconds()
    for child in leftover:
        draft.remove(child, "Background")
    return None
