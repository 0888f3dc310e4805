"""The evaluation report in the run's folder, as JSON and as an HTML page."""

from collections.abc import Sequence
from typing import Final

from finetune_trainer.contract.configs.evaluate import EvaluateConfig
from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.contract.results import Score
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.predictions import PredictionLog, RowPrediction
from finetune_trainer.report.document import encode
from finetune_trainer.report.evaluation.content import evaluation_report
from finetune_trainer.report.evaluation.facts import EvaluationFacts, ShownGain, ShownGate, ShownScore
from finetune_trainer.report.evaluation.rows import TUNED, AnsweredRow, MetricProperties, SubjectAnswer
from finetune_trainer.report.htmlpage import evaluation_page
from finetune_trainer.rows import Message, Row
from finetune_trainer.store import RunFolder

REPORT_NAME: Final = "evaluation.json"
PAGE_NAME: Final = "evaluation.html"


def evaluation_facts(
    config: EvaluateConfig,
    rows: Sequence[Row],
    examples: Sequence[Example],
    log: PredictionLog,
    scores: Sequence[Score],
) -> EvaluationFacts:
    """What the report states. `rows` are all rows of the split, `examples` those that were measured."""
    predictions = {subject: log.of(subject) for subject in config.subjects}
    return EvaluationFacts(
        run=config.run,
        checkpoint=config.checkpoint,
        base_model=config.base_model,
        dataset=config.dataset,
        split=config.split,
        subjects=[subject for subject, measured in predictions.items() if measured],
        metrics=[_properties(metric) for metric in config.metrics],
        gates=_gates(config, scores),
        scores=[
            ShownScore(
                metric=score.metric,
                subject=score.subject,
                value=score.value,
                rows=score.rows,
                low=score.low,
                high=score.high,
            )
            for score in scores
        ],
        gains=list(_gains(scores)),
        rows=[
            _answered(
                example,
                rows[example.row - 1],
                {
                    subject: measured[example.row]
                    for subject, measured in predictions.items()
                    if example.row in measured
                },
            )
            for example in examples
        ],
        predictions_uri=log.uri,
    )


def write_evaluation_report(folder: RunFolder, facts: EvaluationFacts) -> str:
    """Write the report, and return the URI of the page. Raises StageFailure (STORE_UNAVAILABLE)."""
    report = evaluation_report(facts)
    folder.write(REPORT_NAME, encode(report))
    folder.write(PAGE_NAME, evaluation_page(report).encode())
    return f"{folder.uri}/{PAGE_NAME}"


def _properties(metric: str) -> MetricProperties:
    info = METRICS[metric]
    return MetricProperties(
        name=metric,
        description=info.description,
        lower_is_better=info.lower_is_better,
        is_fraction=info.is_fraction,
        is_zero_or_one=info.kind == "Proportion",
    )


def _gains(scores: Sequence[Score]) -> list[ShownGain]:
    tuned = {score.metric: score.value for score in scores if score.subject == TUNED}
    return [
        ShownGain(
            metric=score.metric,
            over=score.subject,
            gain=METRICS[score.metric].gain(tuned[score.metric], score.value),
        )
        for score in scores
        if score.subject != TUNED and score.metric in tuned
    ]


def _gates(config: EvaluateConfig, scores: Sequence[Score]) -> list[ShownGate]:
    values = {(score.metric, score.subject): score.value for score in scores}
    gates = []
    for gate in config.gates:
        value = values.get((gate.metric, TUNED))
        other = None if gate.over is None else values.get((gate.metric, gate.over))
        gain = None if value is None or other is None else METRICS[gate.metric].gain(value, other)
        gates.append(ShownGate(**gate.model_dump(), value=value, gain=gain))
    return gates


def _answered(example: Example, row: Row, predictions: dict[str, RowPrediction]) -> AnsweredRow:
    return AnsweredRow(
        row=example.row,
        turns=[(message.role, _shown(message)) for message in row.input],
        accepted=sorted(example.accepted) or [_shown(row.messages[-1])],
        answers={
            subject: SubjectAnswer(
                text=prediction.text,
                tokens=prediction.tokens,
                finish_reason=prediction.finish_reason,
                metrics=prediction.metrics,
            )
            for subject, prediction in predictions.items()
        },
    )


def _shown(message: Message) -> str:
    return "\n".join(part for part in (message.content, message.tool_calls) if part)
