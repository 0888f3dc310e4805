# SPDX-License-Identifier: Apache-2.0
"""The report as JSON. docs/report.md describes it. Its size is limited, whatever the models answered."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from finetune_trainer.data.statistics import lengths
from finetune_trainer.report.document import Document, camel, showable
from finetune_trainer.report.evaluation.confusion import confusion
from finetune_trainer.report.evaluation.facts import EvaluationFacts, ShownPrompt, ShownScore, ShownTask
from finetune_trainer.report.evaluation.judges import judge_document
from finetune_trainer.report.evaluation.rows import (
    OUTCOMES,
    TUNED,
    AnsweredRow,
    MetricProperties,
    RowJudgement,
    SubjectAnswer,
)

VERSION: Final = 1
MAX_LISTED_ROWS: Final = 500
MAX_TEXT_CHARACTERS: Final = 1_000
"""Max length of an answer or a turn. Longer texts are truncated, with the number of omitted characters."""
MAX_PROMPT_CHARACTERS: Final = 10_000
MAX_LISTED_TURNS: Final = 6
"""Max turns of a row's input: the first, and the last ones."""
MAX_ACCEPTED: Final = 3
"""Max accepted answers of a row."""
MAX_SLICES: Final = 30


def evaluation_report(facts: EvaluationFacts) -> Document:
    """The report of one evaluation, in JSON types. Equal evaluations of a run have equal reports."""
    judgement = judgement_of(facts)
    outcomes = {row.row: judgement.outcomes(row) for row in facts.rows}
    counts = Counter(outcome for of_row in outcomes.values() for outcome in of_row)
    listed = judgement.worst_first(facts.rows)[:MAX_LISTED_ROWS]
    return {
        "version": VERSION,
        "run": facts.run,
        "checkpoint": facts.checkpoint,
        "baseModel": facts.base_model,
        "dataset": facts.dataset,
        "split": facts.split,
        "rows": len(facts.rows),
        "subjects": list(facts.subjects),
        "metrics": [_metric(metric) for metric in facts.metrics],
        "scores": [asdict(score) for score in facts.scores],
        "gains": [asdict(gain) for gain in facts.gains],
        "tasks": [_task(task) for task in facts.tasks],
        "gates": [{camel(name): value for name, value in asdict(gate).items()} for gate in facts.gates],
        "findings": [asdict(finding) for finding in facts.findings],
        "unmeasured": [
            {"subject": subject, "message": message} for subject, message in facts.unmeasured.items()
        ],
        "judges": [judge_document(judge) for judge in facts.judges],
        "prompt": _prompt(facts.prompt),
        "learningCurve": facts.learning_curve,
        "decidedBy": judgement.deciding.name,
        "comparedWith": judgement.over,
        "wrongBy": None if judgement.marking is None else judgement.marking.name,
        "slices": _slices(facts),
        "confusion": [
            {"subject": subject, **confusion(pairs)} for subject, pairs in facts.labels.items() if pairs
        ],
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "answers": [{**_row(row), "outcomes": list(outcomes[row.row])} for row in listed],
        "answersOmitted": len(facts.rows) - len(listed),
        "lengths": [
            {"subject": subject, **distribution}
            for subject in facts.subjects
            if (distribution := _lengths(facts.rows, subject)) is not None
        ],
        "predictions": facts.predictions_uri,
        "answerEngine": facts.answer_engine,
    }


def judgement_of(facts: EvaluationFacts) -> RowJudgement:
    """How rows are compared: by the first metric with a value per row, gated ones first, with the best model.

    If its values are not right or wrong, the first metric whose values are marks the wrong rows.
    """
    measured = {metric for row in facts.rows for answer in row.answers.values() for metric in answer.metrics}
    gated = {gate.metric for gate in facts.gates}
    of_rows = [metric for metric in facts.metrics if metric.name in measured]
    ordered = sorted(of_rows, key=lambda metric: metric.name not in gated)
    return RowJudgement(
        deciding=ordered[0],
        over=_best_other(facts.scores, ordered[0]),
        marking=next((metric for metric in ordered if metric.marks_wrong_rows), None),
    )


def _best_other(scores: Sequence[ShownScore], metric: MetricProperties) -> str | None:
    others = {score.subject: score.value for score in scores if score.metric == metric.name}
    others.pop(TUNED, None)
    return max(others, key=lambda subject: metric.gain(others[subject], 0.0), default=None)


def _metric(metric: MetricProperties) -> Document:
    return {
        "name": metric.name,
        "description": metric.description,
        "lowerIsBetter": metric.lower_is_better,
        "isFraction": metric.is_fraction,
    }


def _task(task: ShownTask) -> Document:
    return {
        "name": task.name,
        "task": showable(task.task),
        "version": showable(task.version),
        "metric": showable(task.metric),
        "numFewshot": task.num_fewshot,
        "rows": task.rows,
        "digest": task.digest,
    }


def _prompt(prompt: ShownPrompt | None) -> Document | None:
    if prompt is None:
        return None
    return {
        "systemPrompt": _text(prompt.system_prompt, MAX_PROMPT_CHARACTERS),
        "examples": [
            {"row": row, "turns": [{"role": role, **_text(text)} for role, text in turns[:MAX_LISTED_TURNS]]}
            for row, turns in prompt.examples
        ],
        "first": _text(prompt.first, MAX_PROMPT_CHARACTERS),
    }


def _slices(facts: EvaluationFacts) -> Document | None:
    if facts.slice_by is None:
        return None
    return {
        "column": showable(facts.slice_by),
        "parts": [
            {
                "value": showable(part.value),
                "rows": part.rows,
                "scores": [asdict(score) for score in part.scores],
            }
            for part in facts.slices[:MAX_SLICES]
        ],
        "partsOmitted": max(len(facts.slices) - MAX_SLICES, 0),
    }


def _row(row: AnsweredRow) -> Document:
    first, last = row.turns[:1], row.turns[1:][-(MAX_LISTED_TURNS - 1) :]
    return {
        "row": row.row,
        "input": [{"role": role, **_text(text)} for role, text in (*first, *last)],
        "turnsOmitted": len(row.turns) - len(first) - len(last),
        "accepted": [_text(text) for text in sorted(row.accepted)[:MAX_ACCEPTED]],
        "acceptedOmitted": max(len(row.accepted) - MAX_ACCEPTED, 0),
        "columns": {name: showable(value) for name, value in row.columns.items()},
        "answers": [{"subject": subject, **_answer(answer)} for subject, answer in row.answers.items()],
        "judged": [{**asdict(judged), "reason": showable(judged.reason)} for judged in row.judged],
    }


def _answer(answer: SubjectAnswer) -> Document:
    return {
        **({"text": None, "charactersOmitted": 0} if answer.text is None else _text(answer.text)),
        "tokens": answer.tokens,
        "finishReason": answer.finish_reason,
        "metrics": dict(answer.metrics),
    }


def _text(text: str, limit: int = MAX_TEXT_CHARACTERS) -> Document:
    """A text that UTF-8 can encode, at most `limit` characters of it, and how many more there are."""
    return {"text": showable(text[:limit]), "charactersOmitted": max(len(text) - limit, 0)}


def _lengths(rows: Sequence[AnsweredRow], subject: str) -> Mapping[str, object] | None:
    """Distribution of the answers' tokens; None if the model answered nothing."""
    import numpy as np

    answers = (row.answers.get(subject) for row in rows)
    tokens = [answer.tokens for answer in answers if answer is not None and answer.tokens is not None]
    return asdict(lengths(np.array(tokens, dtype=np.uint32))) if tokens else None
