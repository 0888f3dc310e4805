# SPDX-License-Identifier: Apache-2.0
"""Progress and scores, as kubectl shows them.

`kubectl get` has the progress of the running stage and the first scores in columns. `kubectl describe` has
the scores of an evaluation as lines of text.
"""

from collections.abc import Sequence
from typing import Final, Literal

from finetune_operator.api.evaluation import EvaluationStatus, Score
from finetune_operator.api.finetune_job_status import JobDisplay, ProgressStatus
from finetune_trainer.contract.results import Progress, TrainResult
from finetune_trainer.contract.vocabulary import Stage


def _percent(step: int, total: int) -> int:
    return min(100, 100 * step // total) if total > 0 else 0


def _same_stage(progress: ProgressStatus | None, stage: Stage) -> ProgressStatus | None:
    return progress if progress is not None and progress.stage == stage else None


def begin_stage(progress: ProgressStatus | None, stage: Stage) -> ProgressStatus:
    """Progress of a queued or running stage, as far as it is known; it keeps the training loss."""
    return _same_stage(progress, stage) or ProgressStatus(
        stage=stage, loss=progress.loss if progress else None
    )


def merge_report(progress: ProgressStatus | None, stage: Stage, report: Progress) -> ProgressStatus:
    """Progress after a report. It never decreases, even if a pod resumes from an earlier step."""
    old = _same_stage(progress, stage)
    if old is not None and report.step < old.step:
        return old
    return ProgressStatus(
        stage=stage,
        step=max(0, report.step),
        total_steps=max(0, report.total_steps),
        percent=_percent(report.step, report.total_steps),
        loss=_round(report.loss) if report.loss is not None else begin_stage(progress, stage).loss,
        reward_accuracy=_round(report.reward_accuracy),
        reward_margin=_round(report.reward_margin),
        learning_rate=report.learning_rate,
        tokens_per_second=_round(report.tokens_per_second),
        eta_seconds=None if report.eta_seconds is None else max(0, round(report.eta_seconds)),
        validation_loss=_round(report.validation_loss),
        validation_step=report.validation_step,
        device_memory_bytes=report.device_memory_bytes,
    )


def complete_stage(progress: ProgressStatus | None, stage: Stage, steps: int = 0) -> ProgressStatus:
    """Progress of a stage that has succeeded."""
    old = begin_stage(progress, stage)
    total = steps or old.total_steps
    return old.model_copy(
        update={
            "step": total,
            "total_steps": total,
            "percent": 100,
            "eta_seconds": None,
            "tokens_per_second": None,
        }
    )


def add_losses(progress: ProgressStatus | None, trained: TrainResult) -> ProgressStatus | None:
    """Progress with the losses of a finished training; the loss of the last steps stays if it is known."""
    if progress is None:
        return None
    known = {"loss": progress.loss if progress.loss is not None else trained.train_loss}
    if trained.validation_loss is not None:
        known["validation_loss"] = trained.validation_loss
    return progress.model_copy(update=known)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def display(
    progress: ProgressStatus | None,
    evaluation: EvaluationStatus | None,
    state: Literal["Running", "Resting", "Done"],
) -> JobDisplay:
    """Columns PROGRESS, LOSS, SCORE and ETA; the ETA is that of the running stage."""
    if progress is None:
        return JobDisplay(score=score_text(evaluation))
    steps = f" ({progress.step}/{progress.total_steps})" if progress.total_steps else ""
    eta = progress.eta_seconds
    return JobDisplay(
        progress="100%" if state == "Done" else f"{progress.stage} {progress.percent}%{steps}",
        loss=None if progress.loss is None else f"{progress.loss:.3f}",
        score=score_text(evaluation),
        eta=duration_text(eta) if state == "Running" and eta is not None else None,
    )


def score_text(evaluation: EvaluationStatus | None) -> str | None:
    """The tuned model's first score, and that of the base model."""
    if evaluation is None:
        return None
    tuned = next((score for score in evaluation.scores if score.subject == "Tuned"), None)
    if tuned is None:
        return None
    base = find_score(evaluation.scores, tuned.metric, "Base")
    base_text = f" (base {base.value:.2f})" if base is not None else ""
    return f"{tuned.metric} {tuned.value:.2f}{base_text}"


def find_score(scores: Sequence[Score], metric: str, subject: str) -> Score | None:
    """The score of a metric for a subject, or None."""
    return next((score for score in scores if score.metric == metric and score.subject == subject), None)


def duration_text(seconds: int) -> str:
    """A duration such as `45s`, `1m20s` or `2h05m`."""
    minutes, rest = divmod(seconds, 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


MAX_LINES: Final = 21
"""A heading and 20 metrics."""
MAX_LINE_CHARACTERS: Final = 160
GATE: Final = "Gate"


def evaluation_table(evaluation: EvaluationStatus | None) -> tuple[str, ...]:
    """One line per metric: the value of each model with its 95 % interval, and the verdict of its gates."""
    if evaluation is None or not evaluation.scores:
        return ()
    metrics = tuple(dict.fromkeys(score.metric for score in evaluation.scores))
    subjects = tuple(dict.fromkeys(score.subject for score in evaluation.scores))
    rows = [("Metric", *subjects, *((GATE,) if evaluation.gates else ()))]
    for metric in metrics:
        values = (_cell(find_score(evaluation.scores, metric, subject)) for subject in subjects)
        verdicts = ", ".join(gate.verdict for gate in evaluation.gates if gate.metric == metric)
        rows.append((metric, *values, *((verdicts,) if evaluation.gates else ())))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return tuple(line[:MAX_LINE_CHARACTERS] for line in lines)[:MAX_LINES]


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
