# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation as JSON, and the sentences of its page.

docs/report.md describes the JSON. Its size is limited, whatever the models answered. The confusion matrix of
a classification counts which label was answered for which.

The sentence at the top of the page answers: is the tuned model better, than what, and how sure is that. Gates
in words have what each asks for, and what the rows say. The operator decides in the same way.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from finetune_trainer.contract.gates import GateLimit
from finetune_trainer.contract.vocabulary import join_names
from finetune_trainer.data.statistics import lengths
from finetune_trainer.report.document import Document, camel, showable
from finetune_trainer.report.evaluation.facts import (
    OUTCOMES,
    TUNED,
    VERDICTS,
    AnsweredRow,
    EvaluationFacts,
    MetricProperties,
    RowJudgement,
    ShownGate,
    ShownPrompt,
    ShownScore,
    ShownTask,
    ShownVerdict,
    SubjectAnswer,
    judge_document,
)
from finetune_trainer.report.verdicts import Level, ReportVerdict, count_noun

MAX_SHOWN_LABELS: Final = 20
"""Labels with a row and a column of their own: those with the most rows."""
MAX_SHOWN_LABEL_CHARACTERS: Final = 80


def confusion(pairs: Sequence[tuple[str, str | None]]) -> Document:
    """The matrix of expected and answered labels; an answer that is not a label is None.

    `counts` has a row per expected label, and in it a column per answered label. If there are more labels
    than MAX_SHOWN_LABELS, the last row has the expected labels without a row of their own. The last column
    has the answers without a column of their own.
    """
    frequency = Counter(expected for expected, _ in pairs)
    labels = sorted(frequency, key=lambda label: (-frequency[label], label))[:MAX_SHOWN_LABELS]
    numbers = {label: number for number, label in enumerate(labels)}
    rest = len(labels)
    counts = [[0] * (rest + 1) for _ in range(rest + (len(frequency) > rest))]
    for expected, answered in pairs:
        column = rest if answered is None else numbers.get(answered, rest)
        counts[numbers.get(expected, rest)][column] += 1
    return {"labels": [showable(_shortened(label)) for label in labels], "counts": counts}


def _shortened(label: str) -> str:
    if len(label) <= MAX_SHOWN_LABEL_CHARACTERS:
        return label
    return label[: MAX_SHOWN_LABEL_CHARACTERS - 1] + "…"


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
        "gates": [_gate(gate) for gate in facts.gates],
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


def _gate(gate: ShownGate) -> Document:
    fields = {camel(name): value for name, value in asdict(gate).items() if name != "without_value"}
    return fields | {"verdict": gate_verdict(gate)}


def gate_verdict(gate: ShownGate) -> ShownVerdict:
    """The verdict of a gate: the worst of its limits."""
    value, gain = (gate.value, gate.low, gate.high), (gate.gain, gate.gain_low, gate.gain_high)
    limits = []
    if gate.min is not None:
        limits.append((GateLimit(gate.min, is_minimum=True), *value))
    if gate.max is not None:
        limits.append((GateLimit(gate.max, is_minimum=False), *value))
    if gate.min_gain is not None:
        limits.append((GateLimit.of_gain(gate.min_gain), *gain))
    verdicts: list[ShownVerdict] = [
        gate.without_value if measured is None else limit.verdict(measured, low, high, gate.confidence)
        for limit, measured, low, high in limits
    ]
    return min(verdicts, key=tuple(VERDICTS).index)


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


def evaluation_verdict(report: Document) -> ReportVerdict:
    """Whether the tuned model is better than the best of the others, by the deciding metric.

    A gain whose interval includes 0 is not certain, and one without an interval is not claimed.
    """
    metric, over, rows = report["decidedBy"], report["comparedWith"], count_noun(report["rows"], "row")
    own = value_of(report, metric, TUNED)
    if own is None:
        return ReportVerdict("warning", f"The model {TUNED} was not measured", f"{rows}.")
    if over is None:
        return ReportVerdict("warning", f"{metric} {figure(own)}, compared with no other model", f"{rows}.")
    gain = next((each for each in report["gains"] if (each["metric"], each["over"]) == (metric, over)), None)
    values = f"{metric} {figure(own)}, {over} {figure(value_of(report, metric, over))}, on {rows}."
    others = [subject for subject in report["subjects"] if subject != TUNED]
    if len(others) > 1:
        values += f" {over} is the best of {join_names(others)}."
    if gain is None:
        return ReportVerdict("warning", f"Not compared with {over}", values)
    level, title = _claim(gain, over)
    return ReportVerdict(level, title, f"{values} {_certainty(gain)}")


def _claim(gain: Document, over: str) -> tuple[Level, str]:
    if gain["low"] is None or gain["high"] is None:
        direction = "Ahead of" if gain["gain"] > 0 else "Behind" if gain["gain"] < 0 else "Equal to"
        return "warning", f"{direction} {over} on these rows"
    if gain["low"] > 0:
        return "good", f"Better than {over}"
    if gain["high"] < 0:
        return "error", f"Worse than {over}"
    return "warning", f"Not shown to be better than {over}"


def _certainty(gain: Document) -> str:
    value = f"The gain is {figure(gain['gain'], signed=True)}"
    if gain["low"] is None or gain["high"] is None:
        return f"{value}. How sure that is, is unknown: there is no interval for it."
    low, high = (figure(gain[bound], signed=True) for bound in ("low", "high"))
    return f"{value}; with 95 % confidence it is between {low} and {high}."


def value_of(report: Document, metric: str, subject: str) -> float | None:
    """A score of the report; None if it was not measured."""
    scores = {(score["metric"], score["subject"]): score["value"] for score in report["scores"]}
    return scores.get((metric, subject))


def figure(value: float | None, *, signed: bool = False) -> str:
    """Format a value with three decimals, or with three digits if it is small; a dash for None."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    # Sums of fractions leave less than a billionth.
    if 1e-9 < abs(value) < 0.001:
        return f"{value:{sign}.3g}"
    return f"{value:{sign}.3f}"


@dataclass(frozen=True, slots=True)
class GateLine:
    """One bound of a gate in words."""

    asks: str
    value: str
    bound: str
    """One-sided bound at the confidence of the gate; empty if the value itself decides."""


def gate_lines(gate: Document) -> list[GateLine]:
    """The bounds of a gate of the report."""
    lines = []
    for word, bound, sure in (("at least", "min", "low"), ("at most", "max", "high")):
        if gate[bound] is not None:
            asks = f"{gate['metric']} {word} {gate[bound]:g}"
            lines.append(GateLine(asks, figure(gate["value"]), _bound(gate, word, sure)))
    if gate["minGain"] is not None:
        least = f"at least {gate['minGain']:g}" if gate["minGain"] else "more than 0"
        asks = f"{gate['metric']} better than {gate['over']} by {least}"
        gain = figure(gate["gain"], signed=True)
        lines.append(GateLine(asks, gain, _bound(gate, "at least", "gainLow", signed=True)))
    return lines


def gate_note(gate: Document) -> str:
    """Why the gate is undecided, and how many more rows would decide it; empty if nothing is to be said."""
    more = gate["moreRows"]
    rows = "" if more is None else f"About {count_noun(more, 'more row')} would decide it."
    return " ".join(part for part in (gate["undecided"], rows) if part)


def _bound(gate: Document, word: str, name: str, *, signed: bool = False) -> str:
    if gate["confidence"] is None or gate[name] is None:
        return ""
    return f"{word} {figure(gate[name], signed=signed)} with {100 * gate['confidence']:g} % confidence"
