# SPDX-License-Identifier: Apache-2.0
"""Scores and gains of the measured rows, as estimates with intervals, and what they say about each gate."""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from finetune_trainer.contract.evaluation import GateBound, GateEvidence
from finetune_trainer.contract.metrics import METRICS, Metric, MetricInfo
from finetune_trainer.contract.results import Score
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.measure import Measure, MeasuredRow, mean
from finetune_trainer.evaluate.measurement_log import RowPrediction
from finetune_trainer.statistics.bootstrap import (
    MIN_UNITS,
    Groups,
    Numbers,
    Resampled,
    bootstrap_mean,
    ratio,
    sum_units,
)
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, Estimate, compute_needed_rows, one_sided
from finetune_trainer.statistics.proportions import PairedProportions, Proportion

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


def describe_shortage(estimate: Estimate, groups: Groups | None, remedy: str = MORE_ROWS_OF_SPLIT) -> str:
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
        return describe_shortage(estimate, self.groups)

    def _estimate(self, metric: Metric, subjects: tuple[Subject, ...]) -> Estimate:
        if (metric, subjects) not in self._made:
            self.on_figure()
            self._made[metric, subjects] = self._make(metric, subjects)
        return self._made[metric, subjects]

    def _make(self, metric: Metric, subjects: tuple[Subject, ...]) -> Estimate:
        info, measure = METRICS[metric], self.measures[metric]
        samples = _pair_rows(
            [measure.rows(metric, self.examples[subject], self.predictions(subject)) for subject in subjects]
        )
        numbers = [row.example.row for row in samples[0]]
        groups = None if self.groups is None else self.groups.shared(numbers)
        if info.kind == "Proportion" and groups is None:
            return _estimate_shares(info, samples)
        return _estimate_sums(info, measure, samples, groups)


def _pair_rows(samples: Sequence[Sequence[MeasuredRow]]) -> list[list[MeasuredRow]]:
    """The rows that count for all subjects: truncation in another chat template may leave no answer."""
    common = set.intersection(*({row.example.row for row in sample} for sample in samples))
    return [[row for row in sample if row.example.row in common] for sample in samples]


def _estimate_shares(info: MetricInfo, samples: Sequence[Sequence[MeasuredRow]]) -> Estimate:
    """Estimate from rows with the value 0 or 1."""
    first, *others = ([row.value for row in sample] for sample in samples)
    if not others:
        return Proportion(int(sum(first)), len(first))
    gains = [info.gain(*pair) for pair in zip(first, *others, strict=True)]
    return PairedProportions(gains.count(1), gains.count(-1), len(gains))


def _estimate_sums(
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
        sums=sum_units(np.hstack(tables), groups),
        function=gains if compares else scores,
        limits=(low - high, high - low) if compares else (low, high),
    )


DECIMALS: Final = 6
"""Of bounds, which are rounded outwards."""


logger = logging.getLogger(__name__)


def compute_scores(subjects: Sequence[Subject], estimates: Estimates) -> Iterator[Score]:
    """Yield the score of each metric and measured subject, with its interval."""
    for subject in subjects:
        for metric in estimates.measures:
            if not estimates.has(metric, subject):
                continue
            score = compute_score(metric, subject, estimates)
            logger.info("%s of %s: %.4f", metric, subject, score.value)
            yield score


def compute_score(metric: Metric, subject: Subject, estimates: RowEstimates) -> Score:
    """Return the score of a metric and a subject, with its interval."""
    estimate = estimates.score(metric, subject)
    low, high = compute_shown_bounds(estimate, estimates)
    return Score(metric=metric, subject=subject, value=estimate.value, rows=estimate.rows, low=low, high=high)


def compute_shown_bounds(estimate: Estimate, estimates: RowEstimates) -> tuple[float | None, float | None]:
    """Return the two-sided interval at `SHOWN_LEVEL`, rounded; None for a bound that the rows do not give."""
    if estimates.shortage(estimate):
        return None, None
    interval = estimate.interval(SHOWN_LEVEL)
    return round_down(interval.low), round_up(interval.high)


def compute_evidence(
    gates: Sequence[GateBound], estimates: RowEstimates, subjects: Sequence[Subject]
) -> Iterator[GateEvidence]:
    """Yield the evidence for each gate whose metric was measured.

    Args:
        gates: the gates of the config.
        estimates: of the measured rows.
        subjects: the subjects that were measured.
    """
    for index, gate in enumerate(gates):
        if gate.metric in estimates.measures and TUNED in subjects:
            over = gate.over
            compares = over is not None and over in subjects and estimates.has(gate.metric, over)
            yield _evidence(index, gate, estimates, compares=compares)


def _evidence(index: int, gate: GateBound, estimates: RowEstimates, *, compares: bool) -> GateEvidence:
    value = estimates.score(gate.metric, TUNED)
    gain = estimates.gain(gate.metric, gate.over) if compares and gate.over is not None else None
    points = GateEvidence(
        gate=index, value=value.value, gain=None if gain is None else gain.value, rows=value.rows
    )
    if gate.confidence is None:
        return points
    shortage = estimates.shortage(value)
    if shortage:
        return points.model_copy(update={"undecided": shortage, "more_rows": _missing_rows(value)})
    bounds: dict[str, float | int | None] = {"more_rows": _more_rows(gate, gate.confidence, value, gain)}
    for prefix, estimate in (("", value), ("gain_", gain)):
        if estimate is not None:
            interval = one_sided(estimate, gate.confidence)
            bounds |= {f"{prefix}low": round_down(interval.low), f"{prefix}high": round_up(interval.high)}
    return points.model_copy(update=bounds)


def round_down(bound: float) -> float | None:
    """Return a lower bound with `DECIMALS`; None if it is infinite."""
    return math.floor(bound * 10**DECIMALS) / 10**DECIMALS if math.isfinite(bound) else None


def round_up(bound: float) -> float | None:
    """Return an upper bound with `DECIMALS`; None if it is infinite."""
    return math.ceil(bound * 10**DECIMALS) / 10**DECIMALS if math.isfinite(bound) else None


def _more_rows(gate: GateBound, confidence: float, value: Estimate, gain: Estimate | None) -> int | None:
    """Return how many more rows would decide the gate; None if it is decided or no number of rows does."""
    compared = [(value, gate.min), (value, gate.max), (gain, gate.min_gain)]
    needed = [
        compute_needed_rows(estimate, bound, confidence)
        for estimate, bound in compared
        if estimate is not None and bound is not None and _is_within(bound, estimate, confidence)
    ]
    known = [rows for rows in needed if rows is not None]
    if not known or len(known) < len(needed):
        return None
    return max(*known, value.rows + 1) - value.rows


def _is_within(bound: float, estimate: Estimate, confidence: float) -> bool:
    """Return whether the true value may be on both sides of the bound of a gate."""
    interval = one_sided(estimate, confidence)
    return interval.low < bound < interval.high


def _missing_rows(value: Estimate) -> int | None:
    """Return how many more rows have the min number of units; None if that is unknown."""
    if not isinstance(value, Resampled) or value.units >= MIN_UNITS:
        return None
    return math.ceil(value.rows * MIN_UNITS / value.units) - value.rows


UNBOUNDED: Final = (-math.inf, math.inf)
"""Range of a metric of which nothing is known."""


@dataclass(frozen=True)
class RowValues:
    """What the user's functions returned. A score is the mean over the rows; higher is better.

    Values of 0 and 1 are those of a proportion: the bootstrap does not know that another row can be wrong.
    """

    values: Mapping[tuple[Metric, Subject], Mapping[int, float]]
    """The value of each row, by its number."""
    groups: Groups | None = None
    """None if the rows are independent."""
    remedy: str = MORE_ROWS_OF_SPLIT
    """How to get more rows, as an imperative."""

    @property
    def measures(self) -> Collection[Metric]:
        """The metrics."""
        return {metric for metric, _ in self.values}

    @property
    def subjects(self) -> Sequence[Subject]:
        """The subjects with answers."""
        return list(dict.fromkeys(subject for _, subject in self.values))

    def has(self, metric: Metric, subject: Subject) -> bool:
        """Return whether the answers of the subject were measured."""
        return (metric, subject) in self.values

    def score(self, metric: Metric, subject: Subject) -> Estimate:
        """Estimate the mean of a subject."""
        of_rows = self.values[metric, subject]
        values, groups = list(of_rows.values()), self._groups_of(list(of_rows))
        if not _are_shares(values):
            return bootstrap_mean(values, groups, UNBOUNDED)
        if groups is not None:
            return bootstrap_mean(values, groups, (0, 1))
        return Proportion(int(sum(values)), len(values))

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Estimate the mean gain of the tuned model, over the rows that both models answered."""
        tuned, others = self.values[metric, TUNED], self.values[metric, over]
        common = [row for row in tuned if row in others]
        samples = [[values[row] for row in common] for values in (tuned, others)]
        gains = [value - other for value, other in zip(*samples, strict=True)]
        groups = self._groups_of(common)
        if not _are_shares(*samples):
            return bootstrap_mean(gains, groups, UNBOUNDED)
        if groups is not None:
            return bootstrap_mean(gains, groups, (-1, 1))
        return PairedProportions(gains.count(1), gains.count(-1), len(gains))

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""
        return describe_shortage(estimate, self.groups, self.remedy)

    def scores(self) -> Iterator[Score]:
        """Yield the score of each metric and subject, with its interval; those of a subject together.

        A termination message may omit the last ones.
        """
        for metric, subject in sorted(self.values, key=lambda each: self.subjects.index(each[1])):
            yield compute_score(metric, subject, self)

    def _groups_of(self, numbers: Sequence[int]) -> list[str] | None:
        return None if self.groups is None else self.groups.shared(numbers)


def _are_shares(*samples: Sequence[float]) -> bool:
    """Return whether each value is 0 or 1, of enough rows to tell."""
    return len(samples[0]) >= MIN_UNITS and all(set(values) <= {0, 1} for values in samples)
