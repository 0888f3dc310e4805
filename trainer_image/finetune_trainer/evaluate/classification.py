# SPDX-License-Identifier: Apache-2.0
"""Answers as labels: what accuracy, macro-F1 and the confusion matrix count."""

from collections.abc import Collection

from finetune_trainer.evaluate.measure import MeasuredRow
from finetune_trainer.evaluate.measured_model import MeasuredBatch
from finetune_trainer.scoring.metric_scope import MetricScope
from finetune_trainer.scoring.text_comparison import LabelSet


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
