# SPDX-License-Identifier: Apache-2.0
"""Decides the gates of an analysis, by what was measured of both revisions.

- Counts of pods: a gate fails if the requests show, at its confidence, that a bound is missed. It passes if
  there are enough requests and the measured value meets the bounds. Otherwise it is inconclusive.
- Queries of the user: the value alone decides. A query does not say how many requests it rests on, so it has
  no interval.
- Answers: each model of the endpoint has scores of its own, and the worst one decides. A gate fails if the
  rows show, at its confidence, that a model misses a bound. It passes if all models have answered enough rows
  and meet the bounds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from finetune_trainer.analyze.pod_metrics import PodMetrics
from finetune_trainer.analyze.probing import ProbeAnswers
from finetune_trainer.analyze.prometheus_queries import QueriedValues
from finetune_trainer.contract.analysis import (
    ANALYSIS_METRICS,
    DEFAULT_QUANTILE,
    LATENCIES,
    AnalysisFigure,
    AnalysisGateBound,
    AnalysisVerdict,
    ServingMetric,
    is_queried,
)
from finetune_trainer.contract.configs import ProbedModel
from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.scoring.textmetrics.table import TEXT_METRICS
from finetune_trainer.statistics.bootstrap import bootstrap_mean
from finetune_trainer.statistics.estimate import Estimate, one_sided
from finetune_trainer.statistics.proportions import (
    HistogramQuantile,
    IndependentProportions,
    PairedProportions,
    Proportion,
)

DIGITS: Final = 4
"""Significant digits of figures."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured at one look at the figures."""

    new: PodMetrics
    stable: PodMetrics
    min_requests: int
    looks: int
    """Number of looks that the measurement may take. Each gets an equal part of the error of the gates."""
    is_long_enough: bool
    """Whether the measurement has taken long enough to pass."""

    def level(self, confidence: float, comparisons: int = 1) -> float:
        """Level of two-sided intervals, each of whose bounds holds with the confidence of the gate."""
        return 1 - 2 * (1 - confidence) / (self.looks * comparisons)


def decide(gate: AnalysisGateBound, evidence: Evidence) -> AnalysisFigure:
    """The figure and the verdict of one gate on what pods measure."""
    if gate.metric not in get_args(ServingMetric):
        return AnalysisFigure(metric=gate.metric, verdict="Inconclusive")
    if gate.metric == "queue_depth":
        return _decide_queue(gate, evidence)
    if gate.metric in LATENCIES:
        return _decide_latency(gate, evidence)
    return _decide_share(gate, evidence, _sheds if gate.metric == "shed_rate" else _errors)


def unknown_metric_problem(gate: AnalysisGateBound) -> str:
    """What to do about the metric of a newer operator; empty if this trainer knows it."""
    if gate.metric in ANALYSIS_METRICS or is_queried(gate.metric):
        return ""
    return (
        f"the trainer image does not know the metric {gate.metric}: update images.trainer of the"
        " ComputeProfile"
    )


def combine_verdicts(verdicts: Iterable[AnalysisVerdict]) -> AnalysisVerdict:
    """Fail if one failed, Pass if all have passed."""
    found = set(verdicts)
    return "Fail" if "Fail" in found else "Inconclusive" if "Inconclusive" in found else "Pass"


def look_seconds(duration: int, max_duration: int) -> list[float]:
    """Seconds after the start of a measurement at which its figures are looked at.

    Twice before the duration, so that a bad revision fails early, and then each time the time has doubled.
    """
    last = max(duration, max_duration)
    looks = [duration / 4, duration / 2]
    while looks[-1] * 2 < last:
        looks.append(looks[-1] * 2)
    return [*looks, float(last)]


def _decide_share(
    gate: AnalysisGateBound, evidence: Evidence, share: Callable[[PodMetrics], Proportion | None]
) -> AnalysisFigure:
    new, stable = share(evidence.new), share(evidence.stable)
    if new is None:
        return AnalysisFigure(metric=gate.metric, verdict="Inconclusive")
    has_enough = new.rows >= evidence.min_requests
    interval = new.interval(evidence.level(gate.confidence))
    verdicts: list[AnalysisVerdict] = []
    if gate.max is not None:
        meets = has_enough and new.value <= gate.max
        verdicts.append(_decide_bound(evidence, fails=interval.low > gate.max, meets=meets))
    if gate.max_increase is not None and stable is not None:
        difference = IndependentProportions(new, stable)
        low = difference.interval(evidence.level(gate.confidence)).low
        has_both = has_enough and stable.rows >= evidence.min_requests
        meets = has_both and difference.value <= gate.max_increase
        verdicts.append(_decide_bound(evidence, fails=low > gate.max_increase, meets=meets))
    return AnalysisFigure(
        metric=gate.metric,
        value=round_figure(new.value),
        low=round_figure(interval.low),
        high=round_figure(interval.high),
        stable=None if stable is None or gate.max_increase is None else round_figure(stable.value),
        verdict=_combine_bounds(verdicts, gate),
    )


def _decide_latency(gate: AnalysisGateBound, evidence: Evidence) -> AnalysisFigure:
    quantile = gate.quantile or DEFAULT_QUANTILE
    new, stable = (_latency(gate, each, quantile) for each in (evidence.new, evidence.stable))
    if new is None:
        return AnalysisFigure(metric=gate.metric, quantile=quantile, verdict="Inconclusive")
    has_enough = new.rows >= evidence.min_requests
    interval = new.interval(evidence.level(gate.confidence))
    verdicts: list[AnalysisVerdict] = []
    if gate.max is not None:
        # The first requests of a pod are slow, so a few of them are no evidence.
        fails = has_enough and 0 < gate.max <= interval.low
        meets = has_enough and new.is_within_edges and new.value <= gate.max
        verdicts.append(_decide_bound(evidence, fails=fails, meets=meets))
    if gate.max_ratio is not None and stable is not None:
        level = evidence.level(gate.confidence, comparisons=2)
        has_both = has_enough and stable.rows >= evidence.min_requests
        fails = has_both and new.interval(level).low >= gate.max_ratio * stable.interval(level).high
        meets = has_both and new.is_within_edges and new.value <= gate.max_ratio * stable.value
        verdicts.append(_decide_bound(evidence, fails=fails, meets=meets))
    return AnalysisFigure(
        metric=gate.metric,
        quantile=quantile,
        value=round_figure(new.value),
        low=round_figure(interval.low),
        high=None if math.isinf(interval.high) else round_figure(interval.high),
        stable=None if stable is None or gate.max_ratio is None else round_figure(stable.value),
        verdict=_combine_bounds(verdicts, gate),
    )


def _decide_queue(gate: AnalysisGateBound, evidence: Evidence) -> AnalysisFigure:
    """Decide by the mean alone: consecutive values of a gauge depend on each other, so it has no interval."""
    new, stable = evidence.new.queue, evidence.stable.queue
    if new is None:
        return AnalysisFigure(metric=gate.metric, verdict="Inconclusive")
    has_enough = evidence.new.requests >= evidence.min_requests
    excesses = [new - gate.max] if gate.max is not None else []
    if gate.max_increase is not None and stable is not None:
        excesses.append(new - stable - gate.max_increase)
    is_decided = has_enough and evidence.is_long_enough
    verdicts: list[AnalysisVerdict] = [
        "Inconclusive" if not is_decided else "Fail" if excess > 0 else "Pass" for excess in excesses
    ]
    return AnalysisFigure(
        metric=gate.metric,
        value=round_figure(new),
        stable=None if stable is None or gate.max_increase is None else round_figure(stable),
        verdict=_combine_bounds(verdicts, gate),
    )


def _decide_bound(evidence: Evidence, *, fails: bool, meets: bool) -> AnalysisVerdict:
    """The verdict on one bound.

    Args:
        evidence: what was measured.
        fails: whether the interval excludes the bound.
        meets: whether the value of enough requests meets it.
    """
    if fails:
        return "Fail"
    return "Pass" if meets and evidence.is_long_enough else "Inconclusive"


def _combine_bounds(verdicts: Sequence[AnalysisVerdict], gate: AnalysisGateBound) -> AnalysisVerdict:
    """The verdict of a gate. A bound that could not be compared is inconclusive."""
    bounds = [each for each in (gate.max, gate.max_increase, gate.max_ratio) if each is not None]
    missing: list[AnalysisVerdict] = ["Inconclusive"] * (len(bounds) - len(verdicts))
    return combine_verdicts([*verdicts, *missing])


def _errors(metrics: PodMetrics) -> Proportion | None:
    requests = round(metrics.requests)
    return Proportion(min(round(metrics.errors), requests), requests) if requests else None


def _sheds(metrics: PodMetrics) -> Proportion | None:
    sheds, requests = round(metrics.sheds), round(metrics.requests + metrics.sheds)
    return Proportion(sheds, requests) if requests else None


def _latency(gate: AnalysisGateBound, metrics: PodMetrics, quantile: float) -> HistogramQuantile | None:
    buckets = metrics.histograms.get(gate.metric, {})
    counts = tuple(round(count) for count in buckets.values())
    if not counts or not counts[-1]:
        return None
    groups = None
    if gate.metric == "inter_token_latency_seconds":
        # The tokens of an answer depend on each other: a long answer in a slow moment has hundreds of them.
        groups = max(round(metrics.requests - metrics.errors), 1)
    return HistogramQuantile(tuple(buckets), counts, quantile, groups)


def round_figure(value: float) -> float:
    """The value as a figure shows it."""
    return float(f"{value:.{DIGITS}g}")


def decide_query(gate: AnalysisGateBound, values: QueriedValues, evidence: Evidence) -> AnalysisFigure:
    """The figure and the verdict of one gate, at a look at or after the duration of the measurement.

    It fails if a bound is missed, and passes if all are met and the measurement is long enough. Without a
    value that a bound needs, or without enough requests, it is inconclusive.
    """
    if values.new is None:
        return AnalysisFigure(metric=gate.metric, verdict="Inconclusive")
    has_enough = evidence.new.requests >= evidence.min_requests
    has_both = has_enough and evidence.stable.requests >= evidence.min_requests
    verdicts = [
        *(
            _decide_query_bound(excess, evidence, is_decided=has_enough)
            for excess in _excesses(gate, values.new)
        ),
        *(
            _decide_query_bound(excess, evidence, is_decided=has_both)
            for excess in _relative_excesses(gate, values.new, values.stable)
        ),
    ]
    return AnalysisFigure(
        metric=gate.metric,
        value=round_figure(values.new),
        stable=None if values.stable is None else round_figure(values.stable),
        verdict=combine_verdicts(verdicts),
    )


def ratio_problem(gate: AnalysisGateBound, values: QueriedValues) -> str:
    """Why the ratio to the stable revision has no meaning; empty if it has one, or if no gate needs it."""
    if gate.max_ratio is None or values.stable is None or values.stable > 0:
        return ""
    return (
        f"{gate.metric}: the stable revision has {round_figure(values.stable):g}, and maxRatio needs a "
        "value above"
        " 0: use maxIncrease"
    )


def _decide_query_bound(excess: float | None, evidence: Evidence, *, is_decided: bool) -> AnalysisVerdict:
    """The verdict on one bound that is missed by `excess`; None if it could not be compared."""
    if excess is None or not is_decided:
        return "Inconclusive"
    if excess > 0:
        return "Fail"
    return "Pass" if evidence.is_long_enough else "Inconclusive"


def _excesses(gate: AnalysisGateBound, new: float) -> Iterator[float]:
    """By how much each bound of the value is missed; 0 or less if it is met."""
    if gate.max is not None:
        yield new - gate.max
    if gate.min is not None:
        yield gate.min - new


def _relative_excesses(gate: AnalysisGateBound, new: float, stable: float | None) -> Iterator[float | None]:
    """By how much each bound relative to the stable revision is missed; None if it has no usable value."""
    if gate.max_increase is not None:
        yield None if stable is None else new - stable - gate.max_increase
    if gate.max_decrease is not None:
        yield None if stable is None else stable - new - gate.max_decrease
    if gate.max_ratio is not None:
        yield None if stable is None or stable <= 0 else new - gate.max_ratio * stable


SEVERITY: tuple[AnalysisVerdict, ...] = ("Fail", "Inconclusive", "Pass")


@dataclass(frozen=True, slots=True)
class Answers:
    """What the models have answered at one look."""

    models: Sequence[ProbedModel]
    rows: Sequence[ProbeAnswers]
    min_rows: int
    looks: int
    """Number of looks at the answers. Each, and each model, gets an equal part of the error of a gate."""
    is_complete: bool
    """Whether no more rows follow, so that a gate can pass."""

    def confidence(self, gate: AnalysisGateBound) -> float:
        """Confidence of one bound of one model at one look."""
        return 1 - (1 - gate.confidence) / (self.looks * len(self.models))


def decide_score(gate: AnalysisGateBound, answers: Answers) -> AnalysisFigure:
    """The figure and the verdict of the worst model."""
    figures = [_figure_of(model, gate, answers) for model in answers.models]
    if not figures:
        return AnalysisFigure(metric=gate.metric, verdict="Inconclusive")
    return min(figures, key=lambda each: (SEVERITY.index(each.verdict), each.value or 0))


def _figure_of(model: ProbedModel, gate: AnalysisGateBound, answers: Answers) -> AnalysisFigure:
    value_of, confidence = TEXT_METRICS[gate.metric], answers.confidence(gate)
    new: list[float] = []
    pairs: list[tuple[float, float]] = []
    for row in answers.rows:
        if row.model != model.name or row.new is None or not row.accepted:
            continue
        new.append(value_of(row.new, row.accepted))
        if row.stable is not None:
            pairs.append((new[-1], value_of(row.stable, row.accepted)))
    if not new:
        return AnalysisFigure(metric=gate.metric, model=model.name, rows=0, verdict="Inconclusive")
    score = _score(gate, new)
    interval = one_sided(score, confidence)
    verdicts: list[AnalysisVerdict] = []
    if gate.min is not None:
        verdicts.append(_decide_score_bound(answers, len(new), score.value, interval.high, gate.min))
    stable: Estimate | None = None
    if gate.max_decrease is not None and not model.is_new:
        if pairs:
            gain, stable = _gain(gate, pairs), _score(gate, [value for _, value in pairs])
            high = one_sided(gain, confidence).high
            verdicts.append(_decide_score_bound(answers, len(pairs), gain.value, high, -gate.max_decrease))
        else:
            verdicts.append("Inconclusive")
    return AnalysisFigure(
        metric=gate.metric,
        model=model.name,
        rows=len(new),
        value=round_figure(score.value),
        low=round_figure(interval.low),
        high=round_figure(interval.high),
        stable=None if stable is None else round_figure(stable.value),
        verdict=combine_verdicts(verdicts) if verdicts else "Pass",
    )


def _decide_score_bound(
    answers: Answers, rows: int, value: float, high: float, bound: float
) -> AnalysisVerdict:
    """The verdict on a lower bound.

    Args:
        answers: what the models have answered.
        rows: number of rows that the value rests on.
        value: the value.
        high: its upper bound at the confidence of the gate.
        bound: the bound of the gate.
    """
    if rows < answers.min_rows:
        return "Inconclusive"
    if high < bound:
        return "Fail"
    return "Pass" if answers.is_complete and value >= bound else "Inconclusive"


def _score(gate: AnalysisGateBound, values: Sequence[float]) -> Estimate:
    if METRICS[gate.metric].kind == "Proportion":
        return Proportion(round(sum(values)), len(values))
    return bootstrap_mean(values, None, METRICS[gate.metric].range)


def _gain(gate: AnalysisGateBound, pairs: Sequence[tuple[float, float]]) -> Estimate:
    """The value of the new revision minus that of the stable one, for the same rows."""
    differences = [new - stable for new, stable in pairs]
    if METRICS[gate.metric].kind == "Proportion":
        return PairedProportions(differences.count(1), differences.count(-1), len(pairs))
    low, high = METRICS[gate.metric].range
    return bootstrap_mean(differences, None, (low - high, high - low))
