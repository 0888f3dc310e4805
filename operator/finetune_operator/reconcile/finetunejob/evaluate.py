"""Evaluate: measure the best Checkpoint on held-out rows, and compare the scores with the gates."""

from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.api.evaluationstatus import EvaluationStatus
from finetune_operator.manifests.configs import evaluate_config, template_arguments
from finetune_operator.reconcile.finetunejob.preflight import hyperparameters_of
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage, without_result
from finetune_operator.reconcile.finetunejob.train import best_checkpoint
from finetune_operator.reconcile.steps import Failed, Halt
from finetune_operator.reconcile.verdicts.evaluationresult import (
    evaluation_status,
    notes,
    verdict_text,
    vetoes_of,
)
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.results import StageResult


def evaluate(run: Run) -> Halt | None:
    """Record scores, gates and verdict; without an evaluation, the Checkpoint that represents the run."""
    if run.status.evaluation is not None:
        return None
    chosen = best_checkpoint(run)
    if isinstance(chosen, Failed):
        return chosen
    champion = run.snapshot.checkpoints.champion_name(run.job.spec.model)
    spec = run.job.spec.evaluation
    if spec is None:
        run.update(evaluation=EvaluationStatus(checkpoint=chosen.name, verdict="NoGates", champion=champion))
        return None
    result = _measure(run, spec, chosen.digest)
    if not isinstance(result, StageResult):
        return result
    if result.evaluate is None:
        return without_result("evaluate")
    evaluation = evaluation_status(
        spec,
        result.evaluate,
        checkpoint=chosen.name,
        champion=champion,
        untested_answers=_untested_answers(run),
    )
    _record(run, spec, evaluation)
    return None


def _record(run: Run, spec: EvaluationSpec, evaluation: EvaluationStatus) -> None:
    run.update(evaluation=evaluation)
    text, said = verdict_text(evaluation), notes(spec, evaluation)
    untested = _untested_text(evaluation.untested_answers)
    run.succeed("evaluate", f"{evaluation.verdict}: {'. '.join((text, *said))}{untested}")
    if evaluation.verdict in {"Failed", "Undecided"}:
        vetoed = bool(vetoes_of(evaluation))
        run.draft.event(EventReason.VETOED if vetoed else EventReason.GATE_FAILED, text, "Warning")
    for note in said:
        run.draft.event(EventReason.EVALUATION_WARNING, note, "Warning")


def _untested_answers(run: Run) -> int | None:
    """The count of prepare; None if the version is gone, or an earlier release prepared the rows."""
    version = run.snapshot.datasetversions.get(run.status.resolved.dataset_version or "")
    return None if version is None else version.spec.statistics.untested_answers


def _untested_text(untested: int | None) -> str:
    if untested is None:
        return ""
    answers = (
        "1 answer in training rows has" if untested == 1 else f"{untested} answers in training rows have"
    )
    return f". {answers} no row in the test split, and the scores do not cover them: see the data report"


def _measure(run: Run, spec: EvaluationSpec, checkpoint: str) -> StageResult | Halt:
    resolved, hyperparameters = run.status.resolved, hyperparameters_of(run)
    if isinstance(hyperparameters, Failed):
        return hyperparameters
    base_model, dataset = resolved.base_model_digest or "", resolved.dataset_digest or ""
    return run_stage(
        run,
        "evaluate",
        lambda inputs: evaluate_config(
            inputs,
            run.job.spec,
            spec,
            base_model=base_model,
            dataset=dataset,
            checkpoint=checkpoint,
            chat_template_kwargs=template_arguments(resolved),
            hyperparameters=hyperparameters,
        ),
    )
