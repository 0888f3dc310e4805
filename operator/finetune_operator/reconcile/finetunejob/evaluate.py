# SPDX-License-Identifier: Apache-2.0
"""Evaluate and score: measure the best Checkpoint on held-out rows, and compare the scores with the gates."""

from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation import EvaluationSettings, EvaluationStatus
from finetune_operator.api.finetune_job_status import CheckpointSummary
from finetune_operator.manifests.configs import (
    MeasuredData,
    checkpoint_type,
    evaluate_config,
    score_config,
    template_arguments,
)
from finetune_operator.manifests.records import adapter_record
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.weights import EvaluatedWeights
from finetune_operator.reconcile.finetunejob import live
from finetune_operator.reconcile.finetunejob.preflight import hyperparameters_of
from finetune_operator.reconcile.finetunejob.prerequisites import Prerequisites
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.finetunejob.train import best_checkpoint
from finetune_operator.reconcile.lines.scores import OF_RUN
from finetune_operator.reconcile.measuring import (
    EVALUATE,
    SCORE,
    check_custom_metrics,
    compares_live,
    live_adapter,
    live_model,
    measure,
    measured_data,
)
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.reconcile.verdicts.evaluationresult import (
    evaluation_status,
    notes,
    of_champion,
    verdict_text,
    vetoes_of,
)
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.method import TYPES
from finetune_trainer.contract.results import EvaluateResult, StageResult
from finetune_trainer.contract.vocabulary import Stage

STAGE: Final = EVALUATE


def evaluate(run: Run) -> Halt | None:
    """Record scores, gates and verdict; without an evaluation, the Checkpoint that represents the run."""
    spec, evaluation = run.job.spec.evaluation, run.status.evaluation
    chosen = best_checkpoint(run)
    if isinstance(chosen, Failed):
        return chosen
    if spec is None:
        if evaluation is None:
            champion = run.snapshot.checkpoints.champion_name(run.job.spec.model_line)
            without = EvaluationStatus(
                checkpoint=chosen.name, verdict="NoGates", source=OF_RUN, champion=champion
            )
            run.update(evaluation=without)
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


def _measured(run: Run, spec: EvaluationSettings, checkpoint: CheckpointSummary) -> EvaluationStatus | Halt:
    """The evaluation by the stage's result, or how the pass ends."""
    chosen = live.choose(run, STAGE, checkpoint.name) if compares_live(spec) else None
    if chosen is not None:
        return chosen
    weights = _weights(run, checkpoint)
    if isinstance(weights, Failed):
        return weights

    def result_of(stage: Stage) -> StageResult | Halt:
        return run_stage(run, stage, lambda inputs: _config(run, stage, spec, weights, inputs))

    measured = measure(run, spec, result_of)
    if not isinstance(measured, EvaluateResult):
        return measured
    rows = run.measured_version
    against = run.status.live
    return evaluation_status(
        spec,
        measured if against is None else of_champion(spec, measured, against.digest),
        checkpoint=checkpoint.name,
        source=OF_RUN,
        dataset_version=rows.name,
        dataset_digest=rows.digest,
        champion=(
            run.snapshot.checkpoints.champion_name(run.job.spec.model_line)
            if against is None
            else against.checkpoint
        ),
        live=None if against is None else against.checkpoint,
        untested_answers=_untested_answers(run),
    )


def _record(run: Run, spec: EvaluationSettings, evaluation: EvaluationStatus) -> None:
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


def _unpermitted(run: Run) -> Blocked | None:
    """Why the Job may not start. The profile may have changed since the start of the run."""
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    refused = custom_metrics_problem(run, found)
    return refused if isinstance(refused, Blocked) else None


def custom_metrics_problem(run: Run, found: Prerequisites) -> Failed | Blocked | None:
    """Why the run may not use metrics of its own."""
    return check_custom_metrics(
        run.job.spec.evaluation, "spec.evaluation.customMetrics", found.store.uri, found.evaluate_profile
    )


def _untested_answers(run: Run) -> int | None:
    """The count of prepare; None if the version is gone, or if other rows are measured."""
    if run.status.resolved.evaluation_dataset_version is not None:
        return None
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


def _weights(run: Run, chosen: CheckpointSummary) -> EvaluatedWeights | Failed:
    resolved, hyperparameters = run.status.resolved, hyperparameters_of(run)
    if isinstance(hyperparameters, Failed):
        return hyperparameters
    method = run.job.spec.method
    return EvaluatedWeights(
        digest=chosen.digest,
        probe=chosen.probe,
        type=checkpoint_type(method),
        base_model=resolved.base_model_digest or "",
        quantized_base=TYPES[method.type].quantized_base,
        chat_template_kwargs=template_arguments(resolved),
        hyperparameters=hyperparameters,
        adapter=adapter_record(resolved.lora),
    )


def _config(
    run: Run, stage: Stage, spec: EvaluationSettings, weights: EvaluatedWeights, inputs: StageInputs
) -> StageConfig | Blocked:
    if stage == SCORE:
        return _unpermitted(run) or score_config(inputs, spec, _data(run))
    return evaluate_config(
        inputs,
        spec,
        weights,
        _data(run),
        step_timeout_seconds=run.job.spec.compute.step_timeout_seconds,
        live=live_model(run),
        live_adapter=live_adapter(run),
        profile=_profile(run),
    )


def _data(run: Run) -> MeasuredData:
    resolved, rows = run.status.resolved, run.measured_version
    others = run.job.spec.evaluation.dataset if run.job.spec.evaluation is not None else None
    return measured_data(
        run,
        rows.name,
        rows.digest,
        split="test" if others is None else others.split,
        training=resolved.dataset_digest,
        shows_training=others is not None,
    )
