"""The scores of a Checkpoint: those of the run that made it, and those of Evaluations."""

from datetime import UTC, datetime
from typing import Final

from finetune_operator.api.checkpoint import MAX_EVALUATIONS, Checkpoint
from finetune_operator.api.evaluationstatus import EvaluationStatus
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.scores import OF_RUN, is_of_run

LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


def with_scores(
    checkpoint: Checkpoint, job: FineTuneJob | None, snapshot: Snapshot
) -> tuple[EvaluationStatus, ...]:
    """The run's own scores, which always stay, then those of the most recent Evaluations.

    An Evaluation has one entry, which outlives it. A later one of the same name replaces it.
    """
    known = checkpoint.status.evaluations
    by_source = {each.source: each for each in known if not is_of_run(each)}
    for evaluation in snapshot.evaluations_of(address(checkpoint.namespace, checkpoint.name)):
        for entry in evaluation.status.evaluations:
            old = by_source.get(entry.source)
            if entry.checkpoint == checkpoint.name and (old is None or _time(old) <= _time(entry)):
                by_source[entry.source] = entry
    others = sorted(by_source.values(), key=lambda each: (_time(each), each.source or ""), reverse=True)
    return (*_of_run(checkpoint, job), *others[: MAX_EVALUATIONS - 1])


def _of_run(checkpoint: Checkpoint, job: FineTuneJob | None) -> tuple[EvaluationStatus, ...]:
    known = tuple(each for each in checkpoint.status.evaluations if is_of_run(each))[:1]
    newest = job.status.evaluation if job is not None else None
    if job is None or newest is None or newest.checkpoint != checkpoint.name or not newest.scores:
        return known
    # An entry that an earlier release wrote stays as it is.
    marks = {"source": OF_RUN, "dataset_digest": job.status.resolved.dataset_digest}
    if known and known[0].source is None and known[0] == newest:
        return known
    return (newest.model_copy(update=marks),)


def _time(entry: EvaluationStatus) -> datetime:
    return entry.measured_at or LONG_AGO
