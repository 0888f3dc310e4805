# SPDX-License-Identifier: Apache-2.0
"""The scores of an evaluation as lines of text, for `kubectl describe`."""

from typing import Final

from finetune_operator.api.evaluation import EvaluationStatus, Score
from finetune_operator.status.progress import find_score

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
