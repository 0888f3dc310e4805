"""Evaluate: measure the best Checkpoint on held-out rows, and compare the scores with the gates."""

from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.api.evaluationstatus import MAX_SCORES, EvaluationStatus, Score
from finetune_operator.manifests.configs import evaluate_config, template_arguments
from finetune_operator.reconcile.finetunejob.gates import decide
from finetune_operator.reconcile.finetunejob.preflight import hyperparameters_of
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage, without_result
from finetune_operator.reconcile.finetunejob.train import best_checkpoint
from finetune_operator.reconcile.steps import Failed, Halt
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
    scores = tuple(
        Score(metric=score.metric, subject=score.subject, value=score.value, rows=score.rows)
        for score in result.evaluate.scores
    )[:MAX_SCORES]
    gates, verdict = decide(spec.gates, scores)
    untested = _untested_answers(run)
    run.update(
        evaluation=EvaluationStatus(
            checkpoint=chosen.name,
            split=result.evaluate.split,
            scores=scores,
            gates=gates,
            verdict=verdict,
            champion=champion,
            untested_answers=untested,
        )
    )
    messages = "; ".join(gate.message for gate in gates) or "no gates"
    run.succeed("evaluate", f"{verdict}: {messages}{_untested_text(untested)}")
    if verdict in {"Failed", "Undecided"}:
        run.draft.event(EventReason.GATE_FAILED, messages, "Warning")
    return None


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
