# SPDX-License-Identifier: Apache-2.0
"""Decide the promotion of a Checkpoint, and record its scores and users in its status."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from finetune_operator.api.checkpoint import MAX_EVALUATIONS, MAX_USERS, Checkpoint, CheckpointDisplay
from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import Condition
from finetune_operator.plan import Event, Plan
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot, run_of
from finetune_operator.reconcile.model_lines import is_of_run, is_resolved
from finetune_operator.reconcile.promotion import decide_promotion
from finetune_operator.reconcile.records import deletion, retention
from finetune_operator.reconcile.records.content_removal import finalizer_update
from finetune_operator.status import conditions
from finetune_operator.status.progress import score_text
from finetune_operator.status.reasons import ConditionType, EventReason, Reason

MAX_OF_EVALUATIONS: Final = MAX_EVALUATIONS - 1
"""One entry is that of the run."""
LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class Scores(NamedTuple):
    """Entries of `status.evaluations`."""

    entries: tuple[EvaluationStatus, ...]
    omitted: tuple[str, ...]
    """Evaluations without an entry because InferenceDeployments require all that the list has place for."""


def scores(checkpoint: Checkpoint, job: FineTuneJob | None, snapshot: Snapshot) -> Scores:
    """The run's own scores, which always stay, then those of the most recent Evaluations.

    An Evaluation has one entry, which outlives it. A later one of the same name replaces it. An entry that an
    InferenceDeployment requires is not replaced by one that none requires.
    """
    by_source = {each.source: each for each in checkpoint.status.evaluations if not is_of_run(each)}
    required = _required(checkpoint, snapshot)
    for evaluation in _with_news(checkpoint, by_source, required, snapshot):
        for entry in evaluation.status.evaluations if is_resolved(evaluation, checkpoint) else ():
            old = by_source.get(entry.source)
            if entry.checkpoint == checkpoint.name and (old is None or _time(old) <= _time(entry)):
                by_source[entry.source] = entry

    def rank(entry: EvaluationStatus) -> tuple[bool, datetime, str]:
        return entry.source in required, _time(entry), entry.source or ""

    ranked = sorted(by_source.values(), key=rank, reverse=True)
    kept, rest = ranked[:MAX_OF_EVALUATIONS], ranked[MAX_OF_EVALUATIONS:]
    entries = sorted(kept, key=lambda each: rank(each)[1:], reverse=True)
    is_blocked = all(each.source in required for each in kept)
    omitted = [
        each for each in rest if is_blocked and (each.source in required or _time(each) > _time(entries[-1]))
    ]
    return Scores((*_of_run(checkpoint, job), *entries), tuple(sorted(each.source or "" for each in omitted)))


def _required(checkpoint: Checkpoint, snapshot: Snapshot) -> frozenset[str]:
    """Names of the Evaluations whose scores InferenceDeployments require of Checkpoints of the model line."""
    line = address(checkpoint.namespace, checkpoint.spec.model_line)
    return frozenset(
        required.evaluation
        for endpoint in snapshot.followers_of(line)
        for model in endpoint.spec.models
        if model.follow is not None and model.follow.model_line == checkpoint.spec.model_line
        for required in model.follow.min_scores
        if required.evaluation is not None
    )


def _with_news(
    checkpoint: Checkpoint,
    known: Mapping[str | None, EvaluationStatus],
    required: frozenset[str],
    snapshot: Snapshot,
) -> Iterator[Evaluation]:
    """The Evaluations that may have an entry to add: a full list has no place for one that is older."""
    times = [_time(each) for name, each in known.items() if name not in required or known.keys() <= required]
    oldest = min(times) if len(known) >= MAX_OF_EVALUATIONS else LONG_AGO
    for name, measured_at in snapshot.measurements_of(address(checkpoint.namespace, checkpoint.name)):
        since = _time(known[name]) if name in known else LONG_AGO if name in required else oldest
        evaluation = snapshot.evaluations.get(name) if measured_at > since else None
        if evaluation is not None:
            yield evaluation


def _of_run(checkpoint: Checkpoint, job: FineTuneJob | None) -> tuple[EvaluationStatus, ...]:
    known = tuple(each for each in checkpoint.status.evaluations if is_of_run(each))[:1]
    newest = job.status.evaluation if job is not None else None
    if job is None or newest is None or newest.checkpoint != checkpoint.name or not newest.scores:
        return known
    return (newest,)


def _time(entry: EvaluationStatus) -> datetime:
    return entry.measured_at or LONG_AGO


MAX_USERS_SHOWN: Final = 2


def reconcile(checkpoint: Checkpoint, snapshot: Snapshot) -> Plan:
    """Plan one pass over a Checkpoint."""
    if checkpoint.metadata.deletion_timestamp is not None:
        return deletion.finalize(checkpoint, snapshot)
    deletions = retention.enforce_limit(checkpoint, snapshot)
    if deletions is not None:
        return deletions
    job = run_of(checkpoint, snapshot)
    decision = decide_promotion(checkpoint, job, snapshot.checkpoints)
    promoted = decision.reason == Reason.PROMOTED
    promoted_at = checkpoint.status.promoted_at
    events: tuple[Event, ...] = ()
    if promoted and promoted_at is None:
        promoted_at = snapshot.checkpoints.promotion_time(checkpoint.spec.model_line, snapshot.now)
        events = (Event("Normal", EventReason.PROMOTED, conditions.shorten(decision.message)),)
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
            "conditions": conditions.set_condition(
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
    others = conditions.drop_conditions(checkpoint.status.conditions, *conditions.STATES)
    if not omitted:
        return conditions.drop_conditions(others, ConditionType.SCORES_RECORDED)
    return conditions.set_condition(
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
