# SPDX-License-Identifier: Apache-2.0
"""The scores of a Checkpoint: those of the run that made it, and those of Evaluations."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from finetune_operator.api.checkpoint import MAX_EVALUATIONS, Checkpoint
from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.scores import is_of_run, is_resolved

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
