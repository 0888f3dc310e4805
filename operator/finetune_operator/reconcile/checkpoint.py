"""Checkpoint: a record; its promotion, and who serves it, are observed and decided here."""

from datetime import datetime
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint, CheckpointDisplay
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import EvaluationStatus
from finetune_operator.plan import Event, Plan
from finetune_operator.reconcile import history, recordcleanup
from finetune_operator.reconcile.indexes import address
from finetune_operator.reconcile.lines import (
    champion,
    champion_name,
    is_approved,
    is_older,
    is_rejected,
    promotion_time,
)
from finetune_operator.reconcile.ownership import holding
from finetune_operator.reconcile.snapshot import Snapshot
from finetune_operator.status import conditions
from finetune_operator.status.progress import score_text
from finetune_operator.status.reasons import ConditionType, EventReason, Reason

EVALUATIONS_AT_MOST: Final = 5
USERS_AT_MOST: Final = 10
USERS_SHOWN: Final = 2

BY_VERDICT: Final = frozenset({Reason.PROMOTED, Reason.PROMOTING})
"""The run's verdict is in favor; nobody's approval is needed."""


def claims(checkpoint: Checkpoint, snapshot: Snapshot) -> frozenset[str]:  # noqa: ARG001 - every kind has one
    """Those that a cleanup mounts; nothing else is mounted for a record."""
    return recordcleanup.claims(checkpoint)


def reconcile(checkpoint: Checkpoint, snapshot: Snapshot) -> Plan:
    """Decide the promotion, and note evaluations and users."""
    if checkpoint.metadata.deletion_timestamp is not None:
        return recordcleanup.clean_up(checkpoint, snapshot)
    gone = history.surplus(checkpoint, snapshot)
    if gone is not None:
        return gone
    job = _job(checkpoint, snapshot)
    promoted_at, reason, message = _promotion(checkpoint, job, snapshot)
    promoted = promoted_at is not None and not is_rejected(checkpoint)
    evaluations = _evaluations(checkpoint, job)
    in_use_by = _users(checkpoint, snapshot)
    generation = checkpoint.metadata.generation
    status = checkpoint.status.model_copy(
        update={
            "observed_generation": generation,
            "promoted_at": promoted_at,
            "evaluations": evaluations,
            "in_use_by": in_use_by[:USERS_AT_MOST],
            "display": CheckpointDisplay(
                score=score_text(evaluations[0] if evaluations else None), in_use=_users_text(in_use_by)
            ),
            "conditions": conditions.with_condition(
                conditions.without(checkpoint.status.conditions, *conditions.STATES),
                ConditionType.PROMOTED,
                "True" if promoted else "False",
                reason,
                message,
                generation=generation,
                now=snapshot.now,
            ),
        }
    )
    # A new record that waits for its run's verdict has nothing to say yet: one write less for each.
    waits = reason == Reason.EVALUATING and not checkpoint.status.conditions
    news = promoted_at is not None and checkpoint.status.promoted_at is None
    return Plan(
        status=None if waits else conditions.status_manifest(status),
        events=(Event("Normal", EventReason.PROMOTED, conditions.shortened(message)),) if news else (),
        metadata=holding(checkpoint),
    )


def _job(checkpoint: Checkpoint, snapshot: Snapshot) -> FineTuneJob | None:
    record = checkpoint.spec.lineage.job
    job = snapshot.finetunejobs.get(record.name)
    return job if job is not None and job.uid == record.uid else None


def _promotion(
    checkpoint: Checkpoint, job: FineTuneJob | None, snapshot: Snapshot
) -> tuple[datetime | None, Reason, str]:
    """`promotedAt`, which once written never changes, and why it is or is not there."""
    spec, index = checkpoint.spec, snapshot.checkpoints
    at = checkpoint.status.promoted_at
    if spec.approval is not None and is_rejected(checkpoint):
        return at, Reason.REJECTED, f"rejected: {spec.approval.reason or 'no reason given'}"
    if at is not None:
        # What it was promoted for stays to be read.
        said = conditions.find(checkpoint.status.conditions, ConditionType.PROMOTED)
        if said is not None and said.reason == Reason.PROMOTED:
            return at, Reason.PROMOTED, said.message
        return at, Reason.PROMOTED, f"promoted in model line {spec.model}"
    reason, message = _verdict(checkpoint, job, champion_name(index, spec.model))
    if is_approved(checkpoint) and reason not in BY_VERDICT:
        # Where the run itself promotes it or is about to, its approval must not stand in the way.
        reason, message = _approval(checkpoint, champion(index, spec.model))
    return _now(checkpoint, snapshot) if reason == Reason.PROMOTED else None, reason, message


def _approval(checkpoint: Checkpoint, best: Checkpoint | None) -> tuple[Reason, str]:
    """What a person's approval comes to."""
    model = checkpoint.spec.model
    if best is None or not is_older(checkpoint, best):
        return Reason.PROMOTED, f"approved, and promoted in model line {model}"
    message = (
        f"approved, but {best.name}, made later, is the champion of {model}: to serve this one,"
        " pin it in an InferenceDeployment"
    )
    return Reason.NOT_PROMOTED, message


def _now(checkpoint: Checkpoint, snapshot: Snapshot) -> datetime:
    return promotion_time(snapshot.checkpoints, checkpoint.spec.model, snapshot.now)


def _verdict(
    checkpoint: Checkpoint, job: FineTuneJob | None, current_champion: str | None
) -> tuple[Reason, str]:
    """What the run says about this checkpoint; `Promoted` when nothing is in the way."""
    if job is None:
        gone = checkpoint.spec.lineage.job.name
        message = f"its FineTuneJob {gone} is gone: approve it (spec.approval) to promote it"
        return Reason.NOT_PROMOTED, message
    evaluation = job.status.evaluation
    if evaluation is None:
        if conditions.is_finished(job):
            return Reason.NOT_PROMOTED, f"FineTuneJob {job.name} ended without judging it: approve it by hand"
        return Reason.EVALUATING, f"FineTuneJob {job.name} has not judged it yet"
    if evaluation.checkpoint != checkpoint.name:
        return Reason.NOT_PROMOTED, f"the run stands for its better checkpoint {evaluation.checkpoint}"
    said = "; ".join(gate.message for gate in evaluation.gates)
    if evaluation.verdict == "Failed":
        return Reason.GATE_FAILED, said
    if evaluation.verdict == "Undecided":
        return Reason.EVALUATION_UNDECIDED, said
    if job.spec.promotion.mode == "Manual":
        return Reason.AWAITING_APPROVAL, "set spec.approval.state to Approved to promote it"
    if evaluation.verdict == "NoGates" and not job.spec.promotion.without_evaluation:
        return Reason.NOT_PROMOTED, "the run has no gates: set spec.approval.state to Approved to promote it"
    if evaluation.champion != current_champion:
        if conditions.is_finished(job):
            message = f"the champion has changed since FineTuneJob {job.name} ended: approve it by hand"
            return Reason.NOT_PROMOTED, message
        return Reason.PROMOTING, f"to be judged against the champion, {current_champion or 'none'}, first"
    return Reason.PROMOTED, f"promoted in model line {checkpoint.spec.model}: {said or 'without evaluation'}"


def _evaluations(checkpoint: Checkpoint, job: FineTuneJob | None) -> tuple[EvaluationStatus, ...]:
    """Newest first; one that only names another champion takes its predecessor's place."""
    known = checkpoint.status.evaluations
    newest = job.status.evaluation if job is not None else None
    if newest is None or newest.checkpoint != checkpoint.name or not newest.scores:
        return known
    others = [old for old in known if (old.split, old.scores) != (newest.split, newest.scores)]
    return (newest, *others)[:EVALUATIONS_AT_MOST]


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
    more = f" +{len(users) - USERS_SHOWN}" if len(users) > USERS_SHOWN else ""
    return ", ".join(users[:USERS_SHOWN]) + more
