# SPDX-License-Identifier: Apache-2.0
"""Measure the Checkpoints one after the other, each by an evaluate Job of its own.

One whose measurement fails does not keep the following ones from being measured.
"""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluationresourcestatus import UnmeasuredCheckpoint
from finetune_operator.api.evaluationstatus import EvaluationStatus
from finetune_operator.reconcile.evaluation import live
from finetune_operator.reconcile.evaluation.assessment import (
    STAGE,
    Assessment,
    number_of_results,
    settings_hash,
)
from finetune_operator.reconcile.evaluation.inputs import find_checkpoint
from finetune_operator.reconcile.evaluation.jobs import build_job, keep
from finetune_operator.reconcile.stages.advance import advance
from finetune_operator.reconcile.stages.creatingagain import create_again, has_run
from finetune_operator.reconcile.stages.losses import lose_measurement, settle
from finetune_operator.reconcile.stages.request import (
    CannotStart,
    Outcome,
    StageFailed,
    StageRequest,
    StartNeeded,
)
from finetune_operator.reconcile.stages.start import start
from finetune_operator.reconcile.stages.usage import finish, record
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.reconcile.verdicts.condensed import condensed
from finetune_operator.reconcile.verdicts.evaluationresult import evaluation_status, notes, verdict_text
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.results import EvaluateResult, StageResult


def measure(run: Assessment) -> Halt | None:
    """Record the scores of each Checkpoint, or why it has none; None once all are recorded."""
    while run.current is not None:
        checkpoint = find_checkpoint(run, run.current)
        known = _known_scores(run, checkpoint) if isinstance(checkpoint, Checkpoint) else None
        if known is not None:
            _record(run, known)
            continue
        chosen = live.choose(run, checkpoint) if isinstance(checkpoint, Checkpoint) else None
        if chosen is not None:
            return chosen
        outcome = record(run, STAGE, _advance(run, run.current, checkpoint))
        if isinstance(outcome, StageFailed | Failed):
            _record_failure(run, outcome.reason, outcome.message)
        elif not isinstance(outcome, StageResult):
            return outcome
        elif outcome.evaluate is None:
            message = (
                f"{STAGE} reports success but no scores: check that the trainer image is of this release"
            )
            _record_failure(run, Reason.RESULT_LOST, message)
        else:
            _record(run, _entry(run, outcome.evaluate))
    if run.status.usage is not None:
        finish(run, STAGE)
    return None


def _known_scores(run: Assessment, checkpoint: Checkpoint) -> EvaluationStatus | None:
    """The scores that this Evaluation measured before its status was lost, as after a restore."""
    return next(
        (
            each
            for each in checkpoint.status.evaluations
            if each.source == run.evaluation.name
            and each.dataset_digest == run.status.resolved.dataset_digest
            and each.settings_hash == settings_hash(run.evaluation)
        ),
        None,
    )


def _advance(run: Assessment, name: str, checkpoint: Checkpoint | Blocked | Failed) -> Outcome:
    request = StageRequest(
        stage=STAGE,
        run=run.run,
        names=run.job_names(STAGE),
        retry=run.status.retry,
        note=f" for Checkpoint {name}",
    )
    answer = advance(run.draft, request)
    if isinstance(answer, StartNeeded):
        if not isinstance(checkpoint, Checkpoint):
            return checkpoint
        return start(run.draft, request, answer, build_job(run, request, answer.purpose, checkpoint))
    if isinstance(answer, CannotStart):
        answer = _create_again(run, request, answer, checkpoint)
    # The operator may have ended between the creation of the Job and the write of the status.
    keep(run)
    return answer


def _create_again(
    run: Assessment, request: StageRequest, stuck: CannotStart, checkpoint: Checkpoint | Blocked | Failed
) -> Outcome:
    """Create a Job again that cannot start. The first one takes the present image."""
    if not isinstance(checkpoint, Checkpoint) or has_run(run, STAGE):
        return stuck.waiting
    trial = run.trial(begins_anew=not number_of_results(run.status))
    again = create_again(run.draft, stuck, build_job(trial, request, "stage", checkpoint))
    if again is None:
        return stuck.waiting
    run.update(resolved=trial.status.resolved)
    return again


def _entry(run: Assessment, result: EvaluateResult) -> EvaluationStatus:
    resolved, champion = run.status.resolved, _champion_of(run, result.live)
    entry = evaluation_status(
        run.evaluation.spec, result, checkpoint=run.current or "", champion=champion, live=champion
    )
    return condensed(entry).model_copy(
        update={
            "source": run.evaluation.name,
            "dataset_version": resolved.dataset_version,
            "dataset_digest": resolved.dataset_digest,
            "settings_hash": settings_hash(run.evaluation),
            "measured_at": run.snapshot.now.replace(microsecond=0),
        }
    )


def _champion_of(run: Assessment, digest: str | None) -> str | None:
    """Name of the Checkpoint that was measured as Live."""
    index, name = run.snapshot.checkpoints, run.current or ""
    if digest is None:
        return None
    rivals = index.of_model(index.model_of(name) or "")
    return next((each.name for each in rivals if each.spec.digest == digest), None)


def _record(run: Assessment, entry: EvaluationStatus) -> None:
    settle(run)
    run.update(evaluations=(*run.status.evaluations, entry), progress=None, retry=None, live=None)
    if entry.verdict in {"Failed", "Undecided"}:
        message = f"Checkpoint {entry.checkpoint}: {verdict_text(entry)}"
        run.draft.event(EventReason.GATE_FAILED, message, "Warning")
    for note in notes(run.evaluation.spec, entry):
        run.draft.event(EventReason.EVALUATION_WARNING, f"Checkpoint {entry.checkpoint}: {note}", "Warning")
    number, all_names = len(run.status.evaluations), run.evaluation.spec.checkpoints
    if number == len(all_names):
        plural = "s" if number > 1 else ""
        run.condition(
            ConditionType.EVALUATED,
            Reason.SUCCEEDED,
            f"{number} Checkpoint{plural} measured on DatasetVersion {run.status.resolved.dataset_version}",
        )


def _record_failure(run: Assessment, reason: str, message: str) -> None:
    name = run.current or ""
    lose_measurement(run, reason)
    failure = UnmeasuredCheckpoint(checkpoint=name, reason=reason, message=shortened(message))
    run.update(unmeasured=(*run.status.unmeasured, failure), progress=None, retry=None, live=None)
    text = f"{STAGE} failed. Checkpoint {name}: {message}"
    run.draft.event(EventReason.STAGE_FAILED, text, "Warning")
