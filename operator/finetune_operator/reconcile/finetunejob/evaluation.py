# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a run: its best Checkpoint is measured on held-out rows, and gates decide."""

from collections.abc import Iterator
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
from finetune_operator.reconcile.evaluation_stages import EVALUATE, measure, measured_data
from finetune_operator.reconcile.features.champion import (
    choose_champion,
    depends_on_champion,
    give_up_comparison,
    is_champion_outdated,
    live_adapter,
    live_model,
    renew_comparison,
)
from finetune_operator.reconcile.features.custom_metrics import SCORE
from finetune_operator.reconcile.features.feature import Permission
from finetune_operator.reconcile.features.registry import config_fields, find_refusal
from finetune_operator.reconcile.finetunejob.preflight import hyperparameters_of
from finetune_operator.reconcile.finetunejob.run import Prerequisites, RunPass
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.finetunejob.train import best_checkpoint
from finetune_operator.reconcile.model_lines import OF_RUN
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome
from finetune_operator.reconcile.verdicts import (
    drop_other_champions,
    evaluation_status,
    find_vetoes,
    notes,
    verdict_text,
)
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.method import TYPES
from finetune_trainer.contract.results import EvaluateResult, StageResult
from finetune_trainer.contract.vocabulary import Stage

STAGE: Final = EVALUATE
MAX_RUNS: Final = 10
"""Runs of a model line that may be judged on the same test rows without a warning."""


def evaluate(run: RunPass) -> PassOutcome | None:
    """Record scores, gates and verdict; without an evaluation, the Checkpoint that represents the run."""
    spec, evaluation = run.job.spec.evaluation, run.status.evaluation
    line, chosen = run.job.spec.model_line, best_checkpoint(run)
    if isinstance(chosen, Failed):
        return chosen
    if spec is None:
        if evaluation is None:
            champion = run.snapshot.checkpoints.champion_name(line)
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
    if depends_on_champion(spec, evaluation) and is_champion_outdated(run, line, chosen.name):
        renewed = renew_comparison(run, line, STAGE)
        if renewed is not None:
            return renewed
        evaluation = give_up_comparison(evaluation)
    if evaluation != run.status.evaluation:
        _record(run, spec, evaluation)
    return None


def _measured(
    run: RunPass, spec: EvaluationSettings, checkpoint: CheckpointSummary
) -> EvaluationStatus | PassOutcome:
    """The evaluation by the stage's result, or how the pass ends."""
    line = run.job.spec.model_line
    chosen = choose_champion(run, line, STAGE, checkpoint.name) if spec.compares_live else None
    if chosen is not None:
        return chosen
    weights = _weights(run, checkpoint)
    if isinstance(weights, Failed):
        return weights

    def result_of(stage: Stage) -> StageResult | PassOutcome:
        return run_stage(run, stage, lambda inputs: _config(run, stage, spec, weights, inputs))

    measured = measure(run, spec, result_of)
    if not isinstance(measured, EvaluateResult):
        return measured
    rows = run.measured_version
    against = run.status.live
    return evaluation_status(
        spec,
        measured if against is None else drop_other_champions(spec, measured, against.digest),
        checkpoint=checkpoint.name,
        source=OF_RUN,
        dataset_version=rows.name,
        dataset_digest=rows.digest,
        champion=(run.snapshot.checkpoints.champion_name(line) if against is None else against.checkpoint),
        live=None if against is None else against.checkpoint,
        untested_answers=_untested_answers(run),
    )


def _record(run: RunPass, spec: EvaluationSettings, evaluation: EvaluationStatus) -> None:
    run.update(evaluation=evaluation)
    text, said = verdict_text(evaluation), (*notes(spec, evaluation), *_reused_rows(run, evaluation))
    untested = _untested_text(evaluation.untested_answers)
    report = f"; report: {evaluation.report_uri}" if evaluation.report_uri else ""
    run.succeed(STAGE, f"{evaluation.verdict}: {'. '.join((text, *said))}{untested}{report}")
    if evaluation.verdict in {"Failed", "Undecided"}:
        vetoed = bool(find_vetoes(evaluation))
        run.draft.event(EventReason.VETOED if vetoed else EventReason.GATE_FAILED, text, "Warning")
    for note in said:
        run.draft.event(EventReason.EVALUATION_WARNING, note, "Warning")


def _reused_rows(run: RunPass, evaluation: EvaluationStatus) -> Iterator[str]:
    """A sentence for the user if so many runs were judged on the same rows that the best may be a matter of
    chance."""
    line = run.job.spec.model_line
    judged = run.snapshot.checkpoints.runs_judged_on(evaluation.dataset_digest or "", line) | {run.job.uid}
    if len(judged) > MAX_RUNS:
        yield (
            f"{len(judged)} runs of the model line {line} have been judged on the test rows of"
            f" {evaluation.dataset_version}, and the best of many runs is the best partly by chance: judge it"
            " on new rows with an Evaluation"
        )


def _unpermitted(run: RunPass) -> Blocked | None:
    """Why the Job may not start. The profile may have changed since the start of the run."""
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    refused = find_feature_refusal(run, found)
    return refused if isinstance(refused, Blocked) else None


def find_feature_refusal(run: RunPass, found: Prerequisites) -> Failed | Blocked | None:
    """Why the run may not use a feature of its evaluation."""
    spec = run.job.spec.evaluation
    if spec is None:
        return None
    return find_refusal(Permission(spec, "spec.evaluation", found.store.uri, found.evaluate_profile))


def _untested_answers(run: RunPass) -> int | None:
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


def _profile(run: RunPass) -> ComputeProfile | None:
    found = run.prerequisites
    return None if isinstance(found, Blocked) else found.profile_of(STAGE)


def _weights(run: RunPass, chosen: CheckpointSummary) -> EvaluatedWeights | Failed:
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
    run: RunPass, stage: Stage, spec: EvaluationSettings, weights: EvaluatedWeights, inputs: StageInputs
) -> StageConfig | Blocked:
    live = live_model(run)
    features = config_fields(stage, spec, run.status.resolved, has_champion=live is not None)
    if stage == SCORE:
        return _unpermitted(run) or score_config(inputs, spec, _data(run), **features)
    return evaluate_config(
        inputs,
        spec,
        weights,
        _data(run),
        features=features,
        step_timeout_seconds=run.job.spec.compute.step_timeout_seconds,
        live=live,
        live_adapter=live_adapter(run),
        profile=_profile(run),
    )


def _data(run: RunPass) -> MeasuredData:
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
