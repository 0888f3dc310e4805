# SPDX-License-Identifier: Apache-2.0
"""The evaluation report in the run's folder, as JSON and as an HTML page."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import CheckFinding, GateBound, GateEvidence, UnmeasuredSubject
from finetune_trainer.contract.metrics import METRICS, Metric, find_metric
from finetune_trainer.contract.results import Score
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.evaluate.answering.trainer_side import engine_version
from finetune_trainer.evaluate.estimates import (
    TUNED,
    Estimates,
    RowEstimates,
    RowValues,
    compute_score,
    compute_shown_bounds,
)
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import label_names
from finetune_trainer.evaluate.measurement_log import PredictionLog, RowPrediction, TaskLog
from finetune_trainer.evaluate.subjects.prompted import PROMPT_FILE
from finetune_trainer.report.document import Document, encode
from finetune_trainer.report.evaluation.content import MAX_SLICES, evaluation_report, judgement_of
from finetune_trainer.report.evaluation.facts import (
    BUILT_IN_ENGINE,
    AnsweredRow,
    EvaluationFacts,
    JudgedRow,
    MetricProperties,
    ScoreSlice,
    ShownFinding,
    ShownGain,
    ShownGate,
    ShownJudge,
    ShownPrompt,
    ShownScore,
    ShownTask,
    ShownVerdict,
    SubjectAnswer,
)
from finetune_trainer.report.html_page import evaluation_page
from finetune_trainer.report.training import REPORT_NAME as TRAINING_REPORT_NAME
from finetune_trainer.rows import Message, Row
from finetune_trainer.scoring.metric_scope import MetricScope
from finetune_trainer.store import RunFolder

REPORT_NAME: Final = "evaluation.json"
PAGE_NAME: Final = "evaluation.html"


@dataclass(frozen=True, kw_only=True)
class MeasuredEvaluation:
    """What the stage knows at its end."""

    config: EvaluateConfig
    rows: Sequence[Row]
    """All rows of the split."""
    estimates: Estimates
    """Of the measured rows."""
    tasks: TaskLog
    task_estimates: RowValues
    """Of the finished tasks."""
    scope: MetricScope
    scores: Sequence[Score]
    evidence: Sequence[GateEvidence] = ()
    findings: Sequence[CheckFinding] = ()
    unmeasured: Sequence[UnmeasuredSubject] = ()
    judges: Sequence[ShownJudge] = ()
    judged: Mapping[int, Sequence[JudgedRow]] = field(default_factory=dict)
    """By number of the row, what judges said about it."""
    prompt: ShownPrompt | None = None
    learning_curve: Document | None = None
    log: PredictionLog
    scanner: Scanner
    """Its findings are hidden in all texts."""

    @property
    def subjects(self) -> list[Subject]:
        """The subjects that were measured."""
        return [subject for subject in self.config.subjects if self.estimates.predictions(subject)]

    def facts(self) -> EvaluationFacts:
        """What the report states."""
        config, subjects = self.config, self.subjects
        engine = engine_version(config, self.log.engine)
        facts = EvaluationFacts(
            run=config.run,
            checkpoint=config.checkpoint,
            base_model=config.base_model,
            dataset=config.dataset,
            split=config.split,
            subjects=subjects,
            metrics=[
                _properties(metric)
                for metric in (*config.metrics, *(task.metric_name for task in config.tasks))
            ],
            tasks=list(self._tasks()),
            gates=list(self._gates()),
            findings=[ShownFinding(**finding.model_dump()) for finding in self.findings],
            unmeasured={each.subject: each.message for each in self.unmeasured},
            judges=self.judges,
            prompt=self.prompt,
            learning_curve=self.learning_curve,
            scores=[ShownScore(**score.model_dump()) for score in self.scores],
            gains=list(self._gains()),
            rows=list(self._answered(subjects)),
            labels=self._labels(),
            predictions_uri=self.log.uri,
            answer_engine=BUILT_IN_ENGINE if engine is None else f"{engine.name} {engine.version}",
        )
        if config.slice_by is None:
            return facts
        slices = self._slices(config.slice_by, judgement_of(facts).deciding.name)
        return replace(facts, slice_by=config.slice_by, slices=list(slices))

    def _gains(self) -> Iterator[ShownGain]:
        others = [subject for subject in self.subjects if subject != TUNED]
        if len(others) == len(self.subjects):
            return
        ability = (task.metric_name for task in self.config.tasks)
        of_metrics: list[tuple[RowEstimates, Metric]] = [
            *((self.estimates, metric) for metric in self.config.metrics),
            *((self.task_estimates, metric) for metric in ability),
        ]
        for estimates, metric in of_metrics:
            for subject in (each for each in others if estimates.has(metric, each)):
                estimate = estimates.gain(metric, subject)
                low, high = compute_shown_bounds(estimate, estimates)
                yield ShownGain(metric=metric, over=subject, gain=estimate.value, low=low, high=high)

    def _tasks(self) -> Iterator[ShownTask]:
        for wanted, task in self.tasks.tasks.items():
            yield ShownTask(
                name=wanted.name,
                task=task.source.file.task,
                version=task.source.file.version,
                metric=task.metric,
                num_fewshot=task.num_fewshot,
                rows=task.rows,
                digest=task.source.digest,
            )

    def _gates(self) -> Iterator[ShownGate]:
        values = {score.metric: score.value for score in self.scores if score.subject == TUNED}
        evidence = {each.gate: each for each in self.evidence}
        for number, gate in enumerate(self.config.gates):
            found = evidence.get(number)
            known = {} if found is None else found.model_dump(exclude={"gate", "rows", "value"})
            yield ShownGate(
                **gate.model_dump(),
                **known,
                value=values.get(gate.metric),
                without_value=self._without_value(gate),
            )

    def _without_value(self, gate: GateBound) -> ShownVerdict:
        """The verdict of a gate whose value or gain is missing."""
        against = {judge.metric: judge.against for judge in self.config.judges}
        if gate.metric in {metric.metric for metric in self.config.custom_metrics}:
            return "Later"
        is_over_live = "Live" in {gate.over, against.get(gate.metric)}
        return "NotApplicable" if is_over_live and self.config.live is None else "Undecided"

    def _slices(self, column: str, metric: Metric) -> Iterator[ScoreSlice]:
        """The rows by the value of a kept column, the most frequent value first."""
        parts: dict[str | None, list[Example]] = defaultdict(list)
        for example in self.estimates.of_tuned:
            parts[dict(self.rows[example.row - 1].columns).get(column)].append(example)
        if set(parts) <= {None}:
            return
        ordered = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0] or ""))
        for number, (value, examples) in enumerate(ordered):
            shown = self.subjects if number < MAX_SLICES else ()
            estimates = self.estimates.of_rows({example.row for example in examples})
            scores = [score for subject in shown if (score := _score(estimates, metric, subject)) is not None]
            shown_value = None if value is None else self.scanner.masked(value)
            yield ScoreSlice(value=shown_value, rows=len(examples), scores=scores)

    def _labels(self) -> dict[str, list[tuple[str, str | None]]]:
        metric = next((each for each in self.config.metrics if "labels" in METRICS[each].needs), None)
        if metric is None:
            return {}
        measure, estimates = self.estimates.measures[metric], self.estimates
        return {
            subject: [
                self._masked_names(label_names(self.scope, row))
                for row in measure.rows(metric, estimates.examples[subject], estimates.predictions(subject))
            ]
            for subject in self.subjects
        }

    def _answered(self, subjects: Sequence[Subject]) -> Iterator[AnsweredRow]:
        predictions = {subject: self.estimates.predictions(subject) for subject in subjects}
        masked = self.scanner.masked
        for example in self.estimates.of_tuned:
            row = self.rows[example.row - 1]
            yield AnsweredRow(
                row=example.row,
                turns=[(message.role, masked(_shown(message))) for message in row.input],
                accepted=[masked(text) for text in sorted(example.accepted) or [_shown(row.messages[-1])]],
                answers={
                    subject: _answer(of[example.row], self.scanner) for subject, of in predictions.items()
                },
                columns=self.scanner.masked_json(dict(row.columns)),
                judged=[
                    replace(each, reason=masked(each.reason)) for each in self.judged.get(example.row, ())
                ],
            )

    def _masked_names(self, names: tuple[str, str | None]) -> tuple[str, str | None]:
        expected, answered = self.scanner.masked_json(list(names))
        return expected, answered


def read_prompt(folder: RunFolder) -> ShownPrompt | None:
    """The prompt of Prompted that the run recorded; None if there is none. Raises StageFailure."""
    content = folder.read(PROMPT_FILE)
    if content is None:
        return None
    record = json.loads(content)
    return ShownPrompt(
        system_prompt=record["systemPrompt"],
        examples=[
            (each["row"], [(turn["role"], _shown(Message.from_dict(turn))) for turn in each["messages"]])
            for each in record["examples"]
        ],
        first=record["firstPrompt"],
    )


def read_learning_curve(training: RunFolder) -> Document | None:
    """The learning curve in the folder of the train stage; None if there is none. Raises StageFailure."""
    content = training.read(TRAINING_REPORT_NAME)
    report = {} if content is None else json.loads(content)
    curve = report.get("learningCurve")
    return None if curve is None else {**curve, "lossUnit": report["lossUnit"]}


def write_evaluation_report(folder: RunFolder, facts: EvaluationFacts) -> str:
    """Write the report, and return the URI of the page. Raises StageFailure (STORE_UNAVAILABLE)."""
    report = evaluation_report(facts)
    folder.write(REPORT_NAME, encode(report))
    folder.write(PAGE_NAME, evaluation_page(report).encode())
    return f"{folder.uri}/{PAGE_NAME}"


def _properties(metric: Metric) -> MetricProperties:
    info = find_metric(metric)
    assert info is not None  # noqa: S101 - the stage has measured it
    return MetricProperties(
        name=metric,
        description=info.description,
        lower_is_better=info.lower_is_better,
        is_fraction=info.is_fraction,
        is_zero_or_one=info.kind == "Proportion",
    )


def _score(estimates: Estimates, metric: Metric, subject: Subject) -> ShownScore | None:
    """A score of some of the rows; None if no row counts for the metric, or it cannot be compared."""
    examples, measure = estimates.examples[subject], estimates.measures[metric]
    if not (estimates.has(metric, subject) and any(measure.weight(example) for example in examples)):
        return None
    return ShownScore(**compute_score(metric, subject, estimates).model_dump())


def _answer(prediction: RowPrediction, scanner: Scanner) -> SubjectAnswer:
    return SubjectAnswer(
        text=scanner.masked_json(prediction.text),
        tokens=prediction.tokens,
        finish_reason=prediction.finish_reason,
        metrics=prediction.metrics,
    )


def _shown(message: Message) -> str:
    return "\n".join(part for part in (message.content, message.tool_calls) if part)
