# SPDX-License-Identifier: Apache-2.0
"""Run the stage that computes the user's metrics of the answers that an evaluation has generated."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from finetune_trainer.contract.configs import ScoreConfig
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.own_metrics import CustomMetric, CustomMetricSource
from finetune_trainer.contract.results import ScoreResult
from finetune_trainer.contract.vocabulary import FailureReason, SplitName, Subject
from finetune_trainer.evaluate.custom.rowvalues import RowValues
from finetune_trainer.evaluate.custom.sandbox import STAGE_SECONDS, MetricError, MetricProcess
from finetune_trainer.evaluate.evidence import evidence_for
from finetune_trainer.evaluate.predictions import FILE
from finetune_trainer.rows import SPLIT_FILES
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.own_metrics import MetricSource, check_metric, metric_failure
from finetune_trainer.statistics.groups import Groups

Answers = dict[Subject, dict[int, str]]
"""The answers of each subject, by the number of their row."""

Answered = dict[Subject, dict[int, float]]
"""The values of a metric, by subject and row."""

logger = logging.getLogger(__name__)


def run(config: ScoreConfig) -> ScoreResult:
    """Call each function for all answers. Raises StageFailure (CUSTOM_METRIC_FAILED, ARTIFACT_NOT_FOUND)."""
    rows = _lines(Path(config.dataset_path) / SPLIT_FILES[config.split])
    answers = _answers(_lines(Path(config.predictions_path) / FILE))
    values: dict[tuple[Metric, Subject], dict[int, float]] = {}
    end = time.monotonic() + STAGE_SECONDS
    sources: list[CustomMetricSource] = []
    for metric in config.metrics:
        source = check_metric(metric)
        sources.append(CustomMetricSource(name=metric.name, digest=source.digest))
        of_subjects = _values(metric, source, rows, answers, end, split=config.split)
        values |= {(metric.metric, subject): found for subject, found in of_subjects.items()}
    groups = None
    if config.group_by is not None:
        groups = Groups.of(config.group_by, (row.get("columns", {}) for row in rows))
    measured = RowValues(values, groups)
    return ScoreResult(
        scores=tuple(measured.scores()),
        evidence=tuple(evidence_for(config.gates, measured, measured.subjects)),
        sources=tuple(sources),
    )


def _values(
    metric: CustomMetric,
    source: MetricSource,
    rows: Sequence[dict[str, Any]],
    answers: Answers,
    end: float,
    *,
    split: SplitName,
) -> Answered:
    seconds = max(end - time.monotonic(), 0)
    with MetricProcess(source.text, metric.function, all_seconds=seconds) as process:
        try:
            process.load()
        except MetricError as error:
            raise metric_failure(metric, f"its source does not load: {error}") from error
        measured: Answered = {}
        for subject, of_subject in answers.items():
            values: dict[int, float] = {}
            for number, answer in of_subject.items():
                try:
                    values[number] = process.value(rows[number - 1], answer)
                except MetricError as error:
                    raise metric_failure(
                        metric, f"row {number} of the {split} split, answer of {subject}: {error}"
                    ) from error
            logger.info("%s: %d answers of %s", metric.metric, len(values), subject)
            measured[subject] = values
    return measured


def _answers(lines: Sequence[dict[str, Any]]) -> Answers:
    """The generated answers of a file of predictions, whose first line is a header."""
    answers: Answers = {}
    for line in lines:
        if line.get("text") is not None:
            answers.setdefault(cast("Subject", line["subject"]), {})[line["row"]] = line["text"]
    return answers


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines. Raises StageFailure (ARTIFACT_NOT_FOUND)."""
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise StageFailure(
            FailureReason.ARTIFACT_NOT_FOUND,
            f"{path.name} cannot be read: {error.strerror}. The evaluation must have written it to the claim"
            " of the run's store",
        ) from error
