# SPDX-License-Identifier: Apache-2.0
"""Decide the promotion of a Checkpoint, and record its evaluations and users in its status."""

from typing import Final

from finetune_operator.api.checkpoint import MAX_EVALUATIONS, MAX_USERS, Checkpoint, CheckpointDisplay
from finetune_operator.api.meta import Condition
from finetune_operator.plan import Event, Plan
from finetune_operator.reconcile.checkpoint.evaluations import scores
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.promotion import decide
from finetune_operator.reconcile.records import deletion, historylimits
from finetune_operator.reconcile.records.finalizer import finalizer_update
from finetune_operator.reconcile.records.lineage import run_of
from finetune_operator.status import conditions
from finetune_operator.status.progress import score_text
from finetune_operator.status.reasons import ConditionType, EventReason, Reason

MAX_USERS_SHOWN: Final = 2


def reconcile(checkpoint: Checkpoint, snapshot: Snapshot) -> Plan:
    """Plan one pass over a Checkpoint."""
    if checkpoint.metadata.deletion_timestamp is not None:
        return deletion.finalize(checkpoint, snapshot)
    deletions = historylimits.enforce_limit(checkpoint, snapshot)
    if deletions is not None:
        return deletions
    job = run_of(checkpoint, snapshot)
    decision = decide(checkpoint, job, snapshot.checkpoints)
    promoted = decision.reason == Reason.PROMOTED
    promoted_at = checkpoint.status.promoted_at
    events: tuple[Event, ...] = ()
    if promoted and promoted_at is None:
        promoted_at = snapshot.checkpoints.promotion_time(checkpoint.spec.model_line, snapshot.now)
        events = (Event("Normal", EventReason.PROMOTED, conditions.shortened(decision.message)),)
    evaluations, omitted = scores(checkpoint, job, snapshot)
    in_use_by = _users(checkpoint, snapshot)
    generation = checkpoint.metadata.generation
    status = checkpoint.status.model_copy(
        update={
            "observed_generation": generation,
            "promoted_at": promoted_at,
            "evaluations": evaluations,
            "in_use_by": in_use_by[:MAX_USERS],
            "display": CheckpointDisplay(
                score=score_text(evaluations[0] if evaluations else None), in_use=_users_text(in_use_by)
            ),
            "conditions": conditions.with_condition(
                _with_omissions(checkpoint, omitted, snapshot),
                ConditionType.PROMOTED,
                "True" if promoted else "False",
                decision.reason,
                decision.message,
                generation=generation,
                now=snapshot.now,
            ),
        }
    )
    # Save one write per record: a new record that waits for the verdict of its run has no status yet.
    waits = decision.reason == Reason.EVALUATING and not checkpoint.status.conditions
    return Plan(
        status=None if waits else conditions.status_manifest(status),
        events=events,
        metadata=finalizer_update(checkpoint),
    )


def _with_omissions(
    checkpoint: Checkpoint, omitted: tuple[str, ...], snapshot: Snapshot
) -> tuple[Condition, ...]:
    """The conditions without those of a deletion, and with one while scores are omitted."""
    others = conditions.without(checkpoint.status.conditions, *conditions.STATES)
    if not omitted:
        return conditions.without(others, ConditionType.SCORES_RECORDED)
    return conditions.with_condition(
        others,
        ConditionType.SCORES_RECORDED,
        "False",
        Reason.LIST_FULL,
        f"status.evaluations has no place for the scores of {', '.join(omitted)}: InferenceDeployments"
        f" require those of {MAX_EVALUATIONS - 1} other Evaluations. Remove minScores[].evaluation where it"
        " is not needed, or read the scores in the status of the Evaluation",
        generation=checkpoint.metadata.generation,
        now=snapshot.now,
    )


def _users(checkpoint: Checkpoint, snapshot: Snapshot) -> tuple[str, ...]:
    return tuple(
        sorted(
            endpoint.name
            for endpoint in snapshot.endpoints_with(address(checkpoint.namespace, checkpoint.name))
            if endpoint.namespace == checkpoint.namespace
            and any(model.checkpoint == checkpoint.name for model in endpoint.status.models)
        )
    )


def _users_text(users: tuple[str, ...]) -> str | None:
    if not users:
        return None
    more = f" +{len(users) - MAX_USERS_SHOWN}" if len(users) > MAX_USERS_SHOWN else ""
    return ", ".join(users[:MAX_USERS_SHOWN]) + more
