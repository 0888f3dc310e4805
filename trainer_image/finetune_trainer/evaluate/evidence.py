# SPDX-License-Identifier: Apache-2.0
"""Scores with their intervals, and what the measured rows say about each gate at its confidence."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Final

from finetune_trainer.contract.evaluation import GateBound, GateEvidence
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.results import Score
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.estimates import TUNED, Estimates, RowEstimates
from finetune_trainer.statistics.bootstrap import MIN_UNITS, Resampled
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, Estimate, one_sided
from finetune_trainer.statistics.power import rows_in_all

DECIMALS: Final = 6
"""Of bounds, which are rounded outwards."""


logger = logging.getLogger(__name__)


def scores_of(subjects: Sequence[Subject], estimates: Estimates) -> Iterator[Score]:
    """Yield the score of each metric and measured subject, with its interval."""
    for subject in subjects:
        for metric in estimates.measures:
            if not estimates.has(metric, subject):
                continue
            score = score_of(metric, subject, estimates)
            logger.info("%s of %s: %.4f", metric, subject, score.value)
            yield score


def score_of(metric: Metric, subject: Subject, estimates: RowEstimates) -> Score:
    """Return the score of a metric and a subject, with its interval."""
    estimate = estimates.score(metric, subject)
    low, high = shown_bounds(estimate, estimates)
    return Score(metric=metric, subject=subject, value=estimate.value, rows=estimate.rows, low=low, high=high)


def shown_bounds(estimate: Estimate, estimates: RowEstimates) -> tuple[float | None, float | None]:
    """Return the two-sided interval at `SHOWN_LEVEL`, rounded; None for a bound that the rows do not give."""
    if estimates.shortage(estimate):
        return None, None
    interval = estimate.interval(SHOWN_LEVEL)
    return rounded_down(interval.low), rounded_up(interval.high)


def evidence_for(
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
            bounds |= {f"{prefix}low": rounded_down(interval.low), f"{prefix}high": rounded_up(interval.high)}
    return points.model_copy(update=bounds)


def rounded_down(bound: float) -> float | None:
    """Return a lower bound with `DECIMALS`; None if it is infinite."""
    return math.floor(bound * 10**DECIMALS) / 10**DECIMALS if math.isfinite(bound) else None


def rounded_up(bound: float) -> float | None:
    """Return an upper bound with `DECIMALS`; None if it is infinite."""
    return math.ceil(bound * 10**DECIMALS) / 10**DECIMALS if math.isfinite(bound) else None


def _more_rows(gate: GateBound, confidence: float, value: Estimate, gain: Estimate | None) -> int | None:
    """Return how many more rows would decide the gate; None if it is decided or no number of rows does."""
    compared = [(value, gate.min), (value, gate.max), (gain, gate.min_gain)]
    needed = [
        rows_in_all(estimate, bound, confidence)
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
