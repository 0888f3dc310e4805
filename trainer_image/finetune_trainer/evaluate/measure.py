# SPDX-License-Identifier: Apache-2.0
"""How a metric measures a row, how much the row counts, and how the score follows from the rows.

Every score is a function of sums over the rows, so that a score of some of the rows costs a sum and not
another look at the answers: bootstrap intervals need the scores of thousands of samples.

Answers are measured as texts, or as labels, which accuracy, macro-F1 and the confusion matrix count.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measured_model import GeneratedAnswer, MeasuredBatch
from finetune_trainer.evaluate.measurement_log import RowPrediction
from finetune_trainer.scoring.metric_scope import MetricScope
from finetune_trainer.scoring.text_comparison import LabelSet
from finetune_trainer.tokens.encoding import IGNORE_INDEX


def count_row(_: Example) -> int:
    """Every row counts the same."""
    return 1


def count_labelled_tokens(example: Example) -> int:
    """Every token of the correct answer counts the same; 0 if none is left after truncation."""
    return sum(label != IGNORE_INDEX for label in example.encoded.labels[1:])


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """A row that counts for a metric, measured with one model."""

    example: Example
    prediction: RowPrediction
    value: float
    """The metric's value of the row."""
    weight: int
    """1 or more."""


def weighted_value(row: MeasuredRow) -> tuple[float, float]:
    """Statistics of a mean: the weighted value, and the weight."""
    return row.value * row.weight, row.weight


def mean(sums: NDArray[np.float64]) -> float:
    """The weighted mean, from the sums of `weighted_value`."""
    return float(sums[0] / sums[1])


@dataclass(frozen=True)
class Measure:
    """A metric. By default, its score is the weighted mean of the rows' values."""

    values: Callable[[MeasuredBatch], Sequence[float]]
    """The value of each row of a batch."""
    weight: Callable[[Example], int] = count_row
    """How much a row counts; 0 leaves it out."""
    statistics: Callable[[MeasuredRow], Sequence[float] | NDArray[np.float64]] = weighted_value
    """The statistics of a row; every row has the same number of them."""
    score: Callable[[NDArray[np.float64]], float] = mean
    """The score of rows, from the sum of their statistics, of shape (statistics,)."""

    def rows(
        self, name: str, examples: Sequence[Example], predictions: Mapping[int, RowPrediction]
    ) -> list[MeasuredRow]:
        """The rows that count, from the predictions of one model by the number of the row.

        Args:
            name: name of the metric in the predictions.
        """
        return [
            MeasuredRow(example, predictions[example.row], predictions[example.row].metrics[name], weight)
            for example in examples
            if (weight := self.weight(example))
        ]

    def table(self, rows: Sequence[MeasuredRow]) -> NDArray[np.float64]:
        """The statistics of the rows, of shape (rows, statistics)."""
        return np.array([self.statistics(row) for row in rows], dtype=np.float64)

    def score_of(self, table: NDArray[np.float64]) -> float:
        """The score of all rows of a table. The exact sums do not depend on the order of the rows."""
        return self.score(np.array([math.fsum(column) for column in table.T]))


def measure_texts(value: Callable[[str, Collection[str]], float]) -> Callable[[MeasuredBatch], list[float]]:
    """The values of a metric that compares the text of an answer with the accepted texts."""
    return measure_answers(lambda answer, example: value(answer.text, example.accepted))


def measure_answers(
    value: Callable[[GeneratedAnswer, Example], float],
) -> Callable[[MeasuredBatch], list[float]]:
    """The values of a metric of answers."""
    return lambda batch: [value(*each) for each in zip(batch.answers, batch.examples, strict=True)]


def required_labels(scope: MetricScope) -> LabelSet:
    """The labels, which the scope of such a metric always has."""
    if scope.labels is None:
        raise ValueError("the scope was found for other metrics")
    return scope.labels


def right_answers(scope: MetricScope, batch: MeasuredBatch) -> list[float]:
    """Return 1 for each answer that names the correct label, otherwise 0."""
    labels = required_labels(scope)
    if scope.constrained_labels:
        answered = batch.choices
    else:
        answered = [labels.index(answer.text) for answer in batch.answers]
    return [
        float(expected_label(labels, example.accepted, label) == label)
        for example, label in zip(batch.examples, answered, strict=True)
    ]


def expected_label(labels: LabelSet, accepted: Collection[str], answered: int | None) -> int:
    """Index of the correct label. If several are accepted and one of them is answered, it is that one."""
    correct = {index for text in accepted if (index := labels.index(text)) is not None}
    return answered if answered is not None and answered in correct else min(correct)


def label_pair(scope: MetricScope, row: MeasuredRow) -> tuple[int, int | None]:
    """Index of the correct label of a row, and of the answered one; None if the answer names none."""
    labels, prediction = required_labels(scope), row.prediction
    answered = prediction.choice if scope.constrained_labels else labels.index(prediction.text or "")
    return expected_label(labels, row.example.accepted, answered), answered


def label_names(scope: MetricScope, row: MeasuredRow) -> tuple[str, str | None]:
    """The correct and the answered label of a row, for a confusion matrix."""
    names = required_labels(scope).names
    expected, answered = label_pair(scope, row)
    return names[expected], None if answered is None else names[answered]
