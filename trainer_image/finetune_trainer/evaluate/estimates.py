# SPDX-License-Identifier: Apache-2.0
"""Scores and gains of the measured rows, as estimates for all rows of their kind."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from finetune_trainer.contract.metrics import METRICS, Metric, MetricInfo
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import Measure, MeasuredRow, mean
from finetune_trainer.evaluate.predictions import RowPrediction
from finetune_trainer.statistics.bootstrap import (
    MIN_UNITS,
    Numbers,
    Resampled,
    ratio,
    sums_of_units,
)
from finetune_trainer.statistics.estimate import Estimate
from finetune_trainer.statistics.groups import Groups
from finetune_trainer.statistics.paired import PairedProportions
from finetune_trainer.statistics.proportion import Proportion

TUNED: Final[Subject] = "Tuned"


MORE_ROWS_OF_SPLIT: Final = "raise the share of the split or add rows"


class RowEstimates(Protocol):
    """What the evidence for gates needs of the measured rows."""

    @property
    def measures(self) -> Collection[Metric]:
        """The metrics that were measured."""

    def has(self, metric: Metric, subject: Subject) -> bool:
        """Return whether the subject has a value of the metric that can be compared."""

    def score(self, metric: Metric, subject: Subject) -> Estimate:
        """Estimate the score of a subject."""

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Estimate the gain of the tuned model over a subject."""

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""


def shortage_of(estimate: Estimate, groups: Groups | None, remedy: str = MORE_ROWS_OF_SPLIT) -> str:
    """Return why the rows give no interval, as a sentence; empty if they give one.

    Args:
        groups: of the rows; None if they are independent.
        remedy: how to get more rows, as an imperative.
    """
    if groups is not None and groups.of_rows is None:
        return (
            f"the dataset keeps rows of one {groups.column} in one split and does not record which rows"
            f" these are: add {groups.column} to spec.keepColumns of the Dataset, and create a new run"
        )
    if not isinstance(estimate, Resampled) or estimate.has_interval:
        return ""
    units = "rows" if groups is None else f"groups of {groups.column}"
    if estimate.units >= MIN_UNITS:
        return (
            f"all {estimate.units} {units} have the same value, and how far others may differ is unknown: add"
            " more rows, or remove the confidence of the gate"
        )
    return (
        f"bounds need at least {MIN_UNITS} {units}, and {estimate.units} were measured: {remedy}, and"
        " create a new run"
    )


@dataclass(frozen=True)
class Estimates:
    """The measured rows of an evaluation. Models are compared row by row."""

    examples: Mapping[Subject, Sequence[Example]]
    """The rows as each subject is prompted."""
    measures: Mapping[Metric, Measure]
    predictions: Callable[[Subject], Mapping[int, RowPrediction]]
    """The measured rows of a subject, by number."""
    groups: Groups | None = None
    """None if the rows are independent."""
    other_tokenizers: frozenset[Subject] = frozenset()
    """Subjects whose tokens are not those of the tuned model."""
    on_figure: Callable[[], None] = lambda: None
    """Called before each figure, whose interval may take a second."""
    _made: dict[tuple[Metric, tuple[Subject, ...]], Estimate] = field(default_factory=dict, init=False)

    @property
    def of_tuned(self) -> Sequence[Example]:
        """The rows as the tuned model is prompted; those of another subject if it is not measured."""
        return self.examples.get(TUNED) or next(iter(self.examples.values()))

    def has(self, metric: Metric, subject: Subject) -> bool:
        """Return whether the subject has a value of the metric that can be compared."""
        return not (METRICS[metric].is_per_token and subject in self.other_tokenizers)

    def of_rows(self, numbers: Collection[int]) -> "Estimates":
        """The estimates from some of the rows."""
        examples = {
            subject: [example for example in each if example.row in numbers]
            for subject, each in self.examples.items()
        }
        return replace(self, examples=examples)

    def score(self, metric: Metric, subject: Subject) -> Estimate:
        """Estimate the score of a subject. It is computed once."""
        return self._estimate(metric, (subject,))

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Estimate the gain of the tuned model over a subject; positive if the tuned model is better."""
        return self._estimate(metric, (TUNED, over))

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""
        return shortage_of(estimate, self.groups)

    def _estimate(self, metric: Metric, subjects: tuple[Subject, ...]) -> Estimate:
        if (metric, subjects) not in self._made:
            self.on_figure()
            self._made[metric, subjects] = self._make(metric, subjects)
        return self._made[metric, subjects]

    def _make(self, metric: Metric, subjects: tuple[Subject, ...]) -> Estimate:
        info, measure = METRICS[metric], self.measures[metric]
        samples = _paired(
            [measure.rows(metric, self.examples[subject], self.predictions(subject)) for subject in subjects]
        )
        numbers = [row.example.row for row in samples[0]]
        groups = None if self.groups is None else self.groups.shared(numbers)
        if info.kind == "Proportion" and groups is None:
            return _of_shares(info, samples)
        return _of_sums(info, measure, samples, groups)


def _paired(samples: Sequence[Sequence[MeasuredRow]]) -> list[list[MeasuredRow]]:
    """The rows that count for all subjects: truncation in another chat template may leave no answer."""
    common = set.intersection(*({row.example.row for row in sample} for sample in samples))
    return [[row for row in sample if row.example.row in common] for sample in samples]


def _of_shares(info: MetricInfo, samples: Sequence[Sequence[MeasuredRow]]) -> Estimate:
    """Estimate from rows with the value 0 or 1."""
    first, *others = ([row.value for row in sample] for sample in samples)
    if not others:
        return Proportion(int(sum(first)), len(first))
    gains = [info.gain(*pair) for pair in zip(first, *others, strict=True)]
    return PairedProportions(gains.count(1), gains.count(-1), len(gains))


def _of_sums(
    info: MetricInfo,
    measure: Measure,
    samples: Sequence[Sequence[MeasuredRow]],
    groups: Sequence[str] | None,
) -> Resampled:
    """Estimate from the sums of statistics, from which each score follows."""
    tables = [measure.table(sample) for sample in samples]
    width = tables[0].shape[1]
    low, high = info.range

    def scores(sums: Numbers) -> Numbers:
        if measure.score is mean:
            return ratio(sums)
        return np.apply_along_axis(measure.score, -1, sums)

    def gains(sums: Numbers) -> Numbers:
        difference = scores(sums[..., :width]) - scores(sums[..., width:])
        return -difference if info.lower_is_better else difference

    values = [measure.score_of(table) for table in tables]
    compares = len(samples) == 2
    return Resampled(
        value=info.gain(values[0], over=values[1]) if compares else values[0],
        rows=len(samples[0]),
        sums=sums_of_units(np.hstack(tables), groups),
        function=gains if compares else scores,
        limits=(low - high, high - low) if compares else (low, high),
    )
