# SPDX-License-Identifier: Apache-2.0
"""Measure the Checkpoints one after the other, each by an evaluate Job of its own, and a score Job for custom
metrics.

One whose measurement fails does not keep the following ones from being measured.
"""

from functools import partial

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation import ComparedChampion, EvaluationStatus
from finetune_operator.api.evaluation_resource import UnmeasuredCheckpoint
from finetune_operator.reconcile import measuring
from finetune_operator.reconcile.evaluation.assessment import (
    STAGE,
    Assessment,
    number_of_results,
    settings_hash,
)
from finetune_operator.reconcile.evaluation.inputs import find_checkpoint
from finetune_operator.reconcile.evaluation.jobs import build_job, keep
from finetune_operator.reconcile.measuring import (
    build_stage_isolation,
    compares_live,
    has_begun,
    rival_of,
)
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
from finetune_operator.reconcile.stages.usage import finish, has_finished, record, reopen
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.reconcile.verdicts.condensed import condensed
from finetune_operator.reconcile.verdicts.evaluationresult import (
    evaluation_status,
    notes,
    verdict_text,
    vetoes_of,
)
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.results import EvaluateResult, StageResult
from finetune_trainer.contract.vocabulary import Stage


def measure(run: Assessment) -> Halt | None:
    """Record the scores of each Checkpoint, or why it has none; None once all are recorded."""
    while run.current is not None:
        checkpoint = find_checkpoint(run, run.current)
        known = _known_scores(run, checkpoint) if isinstance(checkpoint, Checkpoint) else None
        if known is not None:
            _record(run, known)
            continue
        chosen = _choose_champion(run, checkpoint) if isinstance(checkpoint, Checkpoint) else None
        if chosen is not None:
            return chosen
        run_stage = partial(_stage, run, checkpoint)
        measured = measuring.measure(run, run.evaluation.spec, run_stage)
        if isinstance(measured, Failed):
            _record_failure(run, measured.reason, measured.message)
        elif isinstance(measured, EvaluateResult):
            _record(run, _entry(run, measured))
        else:
            return measured
    usage = run.status.usage
    if usage is not None:
        run.update(usage=usage.model_copy(update={"settled_device_seconds": None}))
        finish(run, STAGE)
    return None


def _choose_champion(run: Assessment, checkpoint: Checkpoint) -> Working | None:
    """Record the champion of the Checkpoint's model line; None once it is recorded.

    It is recorded before the Job that measures it is created, so that its content is not removed meanwhile.
    Before there is a Job, another champion replaces it, so that its deletion waits for nothing else.
    """
    if not compares_live(run.evaluation.spec):
        return None
    now = rival_of(run.snapshot, checkpoint.spec.model_line, checkpoint.name)
    if has_begun(run, STAGE) or (run.status.live or ComparedChampion()) == now:
        return None
    run.update(live=now if now.checkpoint else None)
    described = f"champion {now.checkpoint}" if now.checkpoint else "no champion"
    return Working(Reason.QUEUED, f"comparing {checkpoint.name} with {described}")


def _stage(run: Assessment, checkpoint: Checkpoint | Blocked | Failed, stage: Stage) -> StageResult | Halt:
    """The result of one stage, once the status has its times."""
    outcome = _advance(run, stage, checkpoint)
    if isinstance(outcome, StageResult) and has_finished(run, stage):
        return outcome
    recorded = record(run, stage, outcome)
    return Failed(recorded.reason, recorded.message) if isinstance(recorded, StageFailed) else recorded


def _continue_times(run: Assessment) -> None:
    """Continue the times of evaluate after those of score."""
    usage = run.status.usage
    if usage is not None and usage.name != STAGE:
        finish(run, usage.name)
    if has_finished(run, STAGE):
        reopen(run, STAGE)


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


def _advance(run: Assessment, stage: Stage, checkpoint: Checkpoint | Blocked | Failed) -> Outcome:
    request = StageRequest(
        stage=stage,
        run=run.run,
        names=run.job_names(stage),
        isolation=build_stage_isolation(run.evaluation, stage),
        retry=run.status.retry,
        note=f" for Checkpoint {run.current}",
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
    if not isinstance(checkpoint, Checkpoint) or has_run(run, request.stage):
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
        run.evaluation.spec,
        result,
        checkpoint=run.current or "",
        source=run.evaluation.name,
        dataset_version=resolved.dataset_version,
        dataset_digest=resolved.dataset_digest,
        champion=champion,
        live=champion,
    )
    return condensed(entry).model_copy(
        update={
            "settings_hash": settings_hash(run.evaluation),
            "measured_at": run.snapshot.now.replace(microsecond=0),
        }
    )


def _champion_of(run: Assessment, digest: str | None) -> str | None:
    """Name of the Checkpoint that was measured as Live."""
    index, name = run.snapshot.checkpoints, run.current or ""
    if digest is None:
        return None
    rivals = index.of_line(index.line_of(name) or "")
    return next((each.name for each in rivals if each.spec.digest == digest), None)


def _record(run: Assessment, entry: EvaluationStatus) -> None:
    _continue_times(run)
    settle(run)
    run.update(evaluations=(*run.status.evaluations, entry), progress=None, retry=None, live=None)
    if entry.verdict in {"Failed", "Undecided"}:
        message = f"Checkpoint {entry.checkpoint}: {verdict_text(entry)}"
        reason = EventReason.VETOED if vetoes_of(entry) else EventReason.GATE_FAILED
        run.draft.event(reason, message, "Warning")
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
    _continue_times(run)
    lose_measurement(run, reason)
    failure = UnmeasuredCheckpoint(checkpoint=name, reason=reason, message=shortened(message))
    run.update(unmeasured=(*run.status.unmeasured, failure), progress=None, retry=None, live=None)
    text = f"the measurement failed. Checkpoint {name}: {message}"
    run.draft.event(EventReason.STAGE_FAILED, text, "Warning")
