# SPDX-License-Identifier: Apache-2.0
"""Decide the gates of an analysis from the counts of both revisions.

A gate fails if the requests show, at its confidence, that a bound is missed. It passes if there are enough
requests and the measured value meets the bounds. Otherwise it is inconclusive.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from finetune_trainer.analyze.series import PodMetrics
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
from finetune_trainer.statistics.histogram import HistogramQuantile
from finetune_trainer.statistics.independent import IndependentProportions
from finetune_trainer.statistics.proportion import Proportion

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


def combined(verdicts: Iterable[AnalysisVerdict]) -> AnalysisVerdict:
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
        value=rounded(new.value),
        low=rounded(interval.low),
        high=rounded(interval.high),
        stable=None if stable is None or gate.max_increase is None else rounded(stable.value),
        verdict=_of_bounds(verdicts, gate),
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
        value=rounded(new.value),
        low=rounded(interval.low),
        high=None if math.isinf(interval.high) else rounded(interval.high),
        stable=None if stable is None or gate.max_ratio is None else rounded(stable.value),
        verdict=_of_bounds(verdicts, gate),
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
        value=rounded(new),
        stable=None if stable is None or gate.max_increase is None else rounded(stable),
        verdict=_of_bounds(verdicts, gate),
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


def _of_bounds(verdicts: Sequence[AnalysisVerdict], gate: AnalysisGateBound) -> AnalysisVerdict:
    """The verdict of a gate. A bound that could not be compared is inconclusive."""
    bounds = [each for each in (gate.max, gate.max_increase, gate.max_ratio) if each is not None]
    missing: list[AnalysisVerdict] = ["Inconclusive"] * (len(bounds) - len(verdicts))
    return combined([*verdicts, *missing])


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


def rounded(value: float) -> float:
    """The value as a figure shows it."""
    return float(f"{value:.{DIGITS}g}")
