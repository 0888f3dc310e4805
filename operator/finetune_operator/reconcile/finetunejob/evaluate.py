# SPDX-License-Identifier: Apache-2.0
"""Evaluate: measure the best Checkpoint on held-out rows, and compare the scores with the gates."""

from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.api.evaluationstatus import EvaluationStatus
from finetune_operator.api.finetunejobstatus import CheckpointSummary
from finetune_operator.manifests.configs import checkpoint_type, template_arguments
from finetune_operator.manifests.evaluateconfig import evaluate_config
from finetune_operator.manifests.evaluatedweights import EvaluatedWeights
from finetune_operator.manifests.records import adapter_record
from finetune_operator.reconcile.finetunejob import live
from finetune_operator.reconcile.finetunejob.preflight import hyperparameters_of
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.score import score_again, with_custom_metrics
from finetune_operator.reconcile.finetunejob.stage import run_stage, without_result
from finetune_operator.reconcile.finetunejob.train import best_checkpoint
from finetune_operator.reconcile.stages.usage import has_finished
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.reconcile.verdicts.evaluationresult import (
    evaluation_status,
    notes,
    of_champion,
    verdict_text,
    vetoes_of,
)
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.methods import METHODS
from finetune_trainer.contract.results import EvaluateResult, StageResult
from finetune_trainer.contract.vocabulary import Stage

STAGE: Final[Stage] = "evaluate"


def evaluate(run: Run) -> Halt | None:
    """Record scores, gates and verdict; without an evaluation, the Checkpoint that represents the run."""
    spec, evaluation = run.job.spec.evaluation, run.status.evaluation
    chosen = best_checkpoint(run)
    if isinstance(chosen, Failed):
        return chosen
    if spec is None:
        if evaluation is None:
            champion = run.snapshot.checkpoints.champion_name(run.job.spec.model)
            run.update(
                evaluation=EvaluationStatus(checkpoint=chosen.name, verdict="NoGates", champion=champion)
            )
        return None
    if evaluation is None:
        measured = _measured(run, spec, chosen)
        if not isinstance(measured, EvaluationStatus):
            return measured
        evaluation = measured
    if live.decides(spec, evaluation) and live.is_outdated(run, chosen.name):
        renewed = live.renew(run, STAGE)
        if renewed is not None:
            return renewed
        evaluation = live.given_up(evaluation)
    if evaluation != run.status.evaluation:
        _record(run, spec, evaluation)
    return None


def _measured(run: Run, spec: EvaluationSpec, checkpoint: CheckpointSummary) -> EvaluationStatus | Halt:
    """The evaluation by the stage's result, or how the pass ends."""
    chosen = live.choose(run, STAGE, checkpoint.name) if live.compares_live(spec) else None
    if chosen is not None:
        return chosen
    is_recorded = has_finished(run, STAGE)
    result = _measure(run, spec, checkpoint)
    if not isinstance(result, StageResult):
        return result
    if not is_recorded:
        score_again(run)
    if result.evaluate is None:
        return without_result(STAGE)
    measured = with_custom_metrics(run, spec, result.evaluate)
    if not isinstance(measured, EvaluateResult):
        return measured
    against = run.status.live
    return evaluation_status(
        spec,
        measured if against is None else of_champion(spec, measured, against.digest),
        checkpoint=checkpoint.name,
        champion=(
            run.snapshot.checkpoints.champion_name(run.job.spec.model)
            if against is None
            else against.checkpoint
        ),
        live=None if against is None else against.checkpoint,
        untested_answers=_untested_answers(run),
    )


def _record(run: Run, spec: EvaluationSpec, evaluation: EvaluationStatus) -> None:
    run.update(evaluation=evaluation)
    text, said = verdict_text(evaluation), notes(spec, evaluation)
    untested = _untested_text(evaluation.untested_answers)
    report = f"; report: {evaluation.report_uri}" if evaluation.report_uri else ""
    run.succeed(STAGE, f"{evaluation.verdict}: {'. '.join((text, *said))}{untested}{report}")
    if evaluation.verdict in {"Failed", "Undecided"}:
        vetoed = bool(vetoes_of(evaluation))
        run.draft.event(EventReason.VETOED if vetoed else EventReason.GATE_FAILED, text, "Warning")
    for note in said:
        run.draft.event(EventReason.EVALUATION_WARNING, note, "Warning")


def _untested_answers(run: Run) -> int | None:
    """The count of prepare; None if the version is gone."""
    version = run.snapshot.datasetversions.get(run.status.resolved.dataset_version or "")
    return None if version is None else version.spec.statistics.untested_answers


def _untested_text(untested: int | None) -> str:
    if untested is None:
        return ""
    answers = (
        "1 answer in training rows has" if untested == 1 else f"{untested} answers in training rows have"
    )
    return f". {answers} no row in the test split, and the scores do not cover them: see the data report"


def _profile(run: Run) -> ComputeProfile | None:
    found = run.prerequisites
    return None if isinstance(found, Blocked) else found.profile_of(STAGE)


def _measure(run: Run, spec: EvaluationSpec, chosen: CheckpointSummary) -> StageResult | Halt:
    resolved, hyperparameters = run.status.resolved, hyperparameters_of(run)
    if isinstance(hyperparameters, Failed):
        return hyperparameters
    method = run.job.spec.method
    weights = EvaluatedWeights(
        digest=chosen.digest,
        probe=chosen.probe,
        type=checkpoint_type(method),
        base_model=resolved.base_model_digest or "",
        quantized_base=METHODS[method.type].quantized_base,
        chat_template_kwargs=template_arguments(resolved),
        hyperparameters=hyperparameters,
        adapter=adapter_record(method, resolved.lora),
    )
    return run_stage(
        run,
        STAGE,
        lambda inputs: evaluate_config(
            inputs,
            spec,
            weights,
            dataset=resolved.dataset_digest or "",
            group_by=run.snapshot.group_column(resolved.dataset_version),
            step_timeout_seconds=run.job.spec.compute.step_timeout_seconds,
            live=live.live_model(run),
            live_adapter=live.live_adapter(run),
            profile=_profile(run),
            tasks={task.name: task.digest for task in resolved.tasks or ()},
        ),
    )
