# SPDX-License-Identifier: Apache-2.0
"""Decide the gates on queries of the user.

The value alone decides: a query does not say how many requests it rests on, so it has no interval.
"""

from collections.abc import Iterator

from finetune_trainer.analyze.gates import Evidence, combined, rounded
from finetune_trainer.analyze.prometheusreader import QueriedValues
from finetune_trainer.contract.analysis import AnalysisFigure, AnalysisGateBound, AnalysisVerdict


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
        value=rounded(values.new),
        stable=None if values.stable is None else rounded(values.stable),
        verdict=combined(verdicts),
    )


def ratio_problem(gate: AnalysisGateBound, values: QueriedValues) -> str:
    """Why the ratio to the stable revision has no meaning; empty if it has one, or if no gate needs it."""
    if gate.max_ratio is None or values.stable is None or values.stable > 0:
        return ""
    return (
        f"{gate.metric}: the stable revision has {rounded(values.stable):g}, and maxRatio needs a value above"
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
