# SPDX-License-Identifier: Apache-2.0
"""Run one stage of a run: follow its Jobs, create the next one, and record progress, times and the end."""

from finetune_operator.reconcile.finetunejob.predicting import start_note
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stagejobs import ConfigBuilder, build_job, build_peer_objects
from finetune_operator.reconcile.finetunejob.stopping import at_limit, limit_of, within
from finetune_operator.reconcile.measuring import build_stage_isolation
from finetune_operator.reconcile.stages.advance import advance
from finetune_operator.reconcile.stages.creatingagain import create_again, has_run
from finetune_operator.reconcile.stages.request import (
    CannotStart,
    Outcome,
    StageFailed,
    StageRequest,
    StartNeeded,
)
from finetune_operator.reconcile.stages.start import start
from finetune_operator.reconcile.stages.usage import finish, has_finished, record
from finetune_operator.reconcile.steps import Failed, Halt
from finetune_operator.stage_table import STAGES
from finetune_operator.status.reasons import EventReason
from finetune_operator.status.stage_results import shown_problems
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


def run_stage(run: Run, stage: Stage, build_config: ConfigBuilder) -> StageResult | Halt:
    """The stage's result, or how the pass ends."""
    limit = limit_of(run, stage) if STAGES[stage].time_limit else None
    stopped = at_limit(run, limit) if limit is not None else None
    if stopped is not None:
        return stopped
    ended = _recorded(run, stage, _advance(run, stage, build_config))
    return within(run, limit, ended) if limit is not None and not isinstance(ended, StageResult) else ended


def _advance(run: Run, stage: Stage, build_config: ConfigBuilder) -> Outcome:
    request = StageRequest(
        stage=stage,
        run=run.job.uid,
        names=run.job_names(stage),
        peers=build_peer_objects(run, stage),
        isolation=build_stage_isolation(run.job, stage),
        retry=run.status.retry,
        note=start_note(run) if STAGES[stage].time_limit else "",
    )
    answer = advance(run.draft, request)
    if isinstance(answer, CannotStart):
        return _create_again(run, request, answer, build_config)
    if isinstance(answer, StartNeeded):
        return start(run.draft, request, answer, build_job(run, request, answer.purpose, build_config))
    return answer


def _create_again(
    run: Run, request: StageRequest, stuck: CannotStart, build_config: ConfigBuilder
) -> Outcome:
    """Create a Job again that cannot start. In the first stage, the run takes the present image and store."""
    if has_run(run, request.stage):
        return stuck.waiting
    trial = run.trial(begins_anew=not run.status.stages)
    again = create_again(run.draft, stuck, build_job(trial, request, "stage", build_config))
    if again is None:
        return stuck.waiting
    run.update(resolved=trial.status.resolved)
    return again


def _recorded(run: Run, stage: Stage, outcome: Outcome) -> StageResult | Halt:
    """The same, once the status has what happened."""
    if isinstance(outcome, StageResult) and has_finished(run, stage):
        return outcome
    recorded = record(run, stage, outcome)
    if isinstance(recorded, StageResult | StageFailed):
        finish(run, stage, recorded if isinstance(recorded, StageResult) else recorded.result)
    if not isinstance(recorded, StageFailed):
        return recorded
    prepared = recorded.result.prepare if recorded.result is not None else None
    if prepared is not None:
        run.update(problems=shown_problems(prepared))
    run.draft.event(EventReason.STAGE_FAILED, f"{stage} failed: {recorded.message}", "Warning")
    return Failed(recorded.reason, recorded.message)
