# SPDX-License-Identifier: Apache-2.0
"""What the results of prepare and train say in statuses, conditions and events.

Prepare: problems and warnings of the rows. Train: the condition Trained, and the figures of the training.
"""

from typing import Final

from finetune_operator.api.finetune_job_status import TrainingStatus
from finetune_operator.api.meta import MAX_PROBLEMS
from finetune_operator.api.training import (
    MAX_SHARES,
    LearningCurve,
    LearningCurvePoint,
    ResolvedHyperparameters,
)
from finetune_operator.status.conditions import shorten
from finetune_trainer.contract.results import OUTLOOKS, CheckpointResult, PrepareResult, TrainResult

MAX_FIRST_PROBLEM_CHARACTERS: Final = 500
"""Limit of the problem in an event, so that the event has room for the report's uri."""


def select_problems(prepared: PrepareResult) -> tuple[str, ...]:
    """The first rows that cannot be used; the report in the store has all of them."""
    return _shorten_first(prepared.problems)


def select_warnings(prepared: PrepareResult) -> tuple[str, ...]:
    """The first warnings; the report in the store has more."""
    return _shorten_first(prepared.warnings)


def summarize_problems(version: str, prepared: PrepareResult) -> str | None:
    """Message of the event about a version's problems and warnings; None if it has none."""
    dropped, warned = prepared.problem_count, prepared.warning_count
    if not dropped and not warned:
        return None
    first = next(iter((*prepared.problems, *prepared.warnings)), None)
    parts = (
        f"problems in rows that were left out: {dropped}" if dropped else None,
        f"warnings: {warned}" if warned else None,
        f"the first: {shorten(first, MAX_FIRST_PROBLEM_CHARACTERS)}" if first is not None else None,
        f"all of them: {prepared.report_uri}" if prepared.report_uri is not None else None,
    )
    return f"DatasetVersion {version}: {'; '.join(part for part in parts if part is not None)}"


def _shorten_first(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(shorten(text) for text in texts[:MAX_PROBLEMS])


def trained_message(trained: TrainResult, hyperparameters: ResolvedHyperparameters, measured: str) -> str:
    """Message of Trained: steps, checkpoints, restarts, deviations from the plan, and overfitting.

    Args:
        measured: text of `measured_message`.
    """
    steps = f"{trained.steps} steps"
    if trained.stopped_early:
        patience = hyperparameters.early_stopping_patience or 0
        unit = "validation" if hyperparameters.validate_every_steps else "epoch"
        steps = (
            f"{trained.steps} of {hyperparameters.total_steps} steps (stopped early: no lower validation loss"
            f" for {_count(patience, unit)})"
        )
    report = f"; report: {trained.report_uri}" if trained.report_uri else ""
    return (
        f"{steps}, {_count(len(trained.checkpoints), 'checkpoint')}{_restarts(trained)}{_rewards(trained)}"
        f"{_less_memory(trained, hyperparameters)}{_overfitting(trained)}{_outlook(trained)}"
        f"{measured}{report}"
    )


def _outlook(trained: TrainResult) -> str:
    if trained.learning_curve is None:
        return ""
    sentence = OUTLOOKS.get(trained.learning_curve.outlook, OUTLOOKS["Unknown"])
    return f"; {sentence[0].lower()}{sentence[1:]}, by the learning curve"


def training_status(trained: TrainResult) -> TrainingStatus:
    """The figures of the training for the status."""
    best = _best(trained)
    rewards = best.model_dump(include={"reward_accuracy", "reward_margin"}) if best else {}
    return TrainingStatus(
        **trained.model_dump(include=set(TrainingStatus.model_fields) - {"learning_curve"}),
        **rewards,
        learning_curve=_learning_curve(trained),
    )


def _learning_curve(trained: TrainResult) -> LearningCurve | None:
    curve = trained.learning_curve
    if curve is None:
        return None
    points = tuple(LearningCurvePoint(**point.model_dump()) for point in curve.points[-MAX_SHARES - 1 :])
    return LearningCurve(**curve.model_dump(exclude={"points"}), points=points)


def used_hyperparameters(trained: TrainResult, planned: ResolvedHyperparameters) -> ResolvedHyperparameters:
    """The planned hyperparameters, with those that were changed because memory ran out."""
    changed = {
        "max_batch_rows": trained.max_batch_rows,
        "max_batch_tokens": trained.max_batch_tokens,
        "gradient_checkpointing": trained.gradient_checkpointing,
    }
    return planned.model_copy(update={name: used for name, used in changed.items() if used is not None})


def _restarts(trained: TrainResult) -> str:
    if not trained.restarts:
        return ""
    lost = round(trained.lost_device_seconds)
    repeated = f", {lost} s of device time repeated" if lost else ""
    return f", {trained.restarts} restarts{repeated}"


def _rewards(trained: TrainResult) -> str:
    best = _best(trained)
    if best is None:
        return ""
    accuracy, margin = best.reward_accuracy, best.reward_margin
    accuracy_text = "" if accuracy is None else f"; reward accuracy {accuracy:.2f}"
    return f"{accuracy_text}; reward margin {margin:.3g}" if margin is not None else accuracy_text


def _best(trained: TrainResult) -> CheckpointResult | None:
    return next((checkpoint for checkpoint in trained.checkpoints if checkpoint.best), None)


def _less_memory(trained: TrainResult, planned: ResolvedHyperparameters) -> str:
    used = used_hyperparameters(trained, planned)
    parts = []
    if used.max_batch_tokens != planned.max_batch_tokens:
        parts.append(
            f"; batches of up to {used.max_batch_tokens} tokens, because {planned.max_batch_tokens} tokens at"
            " once did not fit into memory"
        )
    if used.max_batch_rows is not None and used.max_batch_rows != planned.max_batch_rows:
        parts.append(
            f"; batches of up to {_count(used.max_batch_rows, 'row')}, because {planned.max_batch_rows} rows"
            " at once did not fit into memory"
        )
    if used.gradient_checkpointing and not planned.gradient_checkpointing:
        parts.append("; with gradient checkpointing, because a batch did not fit into memory without it")
    return "".join(parts)


def _overfitting(trained: TrainResult) -> str:
    best = next((checkpoint for checkpoint in trained.checkpoints if checkpoint.best), None)
    final = next((checkpoint for checkpoint in trained.checkpoints if checkpoint.final), None)
    if not trained.overfit or best is None or final is None:
        return ""
    return (
        f"; validation loss rose from {best.validation_loss or 0:.2f} after epoch {best.epoch:.3g} to"
        f" {final.validation_loss or 0:.2f} while training loss fell: the run overfits. The best checkpoint"
        f" is from step {best.step}. Use fewer epochs or more rows"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
