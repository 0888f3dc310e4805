"""Intervals of a learning curve, and what they say about more rows.

Intervals are two-sided at 95 %, by the bias-corrected and accelerated bootstrap over validation rows (Efron,
"Better Bootstrap Confidence Intervals", 1987), as scipy computes it. Differences are paired: both losses are
those of the same rows. They do not cover what another seed would change.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from scipy.stats import bootstrap

from finetune_trainer.contract.learningcurve import LearningCurve, LearningCurvePoint, Outlook
from finetune_trainer.train.learningcurve.record import MeasuredShare

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
MAX_UNITS: Final = 2000
"""More rows are summed at random into this number of groups, which bounds the time of the bootstrap."""
BATCH_FIGURES: Final = 1 << 22
"""Figures of resampled rows in memory at once."""
MIN_ROWS: Final = 20
"""Validation rows below which there are no intervals, because those of a bootstrap are too narrow."""
WORTHWHILE_GAIN: Final = 0.02
"""Fall of the loss per doubling of the rows, relative to the loss, below which more rows are not worth it."""
DIGITS: Final = 5

Interval = tuple[float, float]
Statistic = Callable[..., Any]


def learning_curve(measured: Sequence[MeasuredShare], seed: int) -> LearningCurve:
    """The curve of finished trainings; `seed` is that of the bootstrap."""
    points: list[LearningCurvePoint] = []
    before: MeasuredShare | None = None
    ordered = sorted(measured, key=lambda each: each.share)
    outlook: Outlook = "Unknown"
    for each in ordered:
        point, outlook = _point(each, before, seed)
        points.append(point)
        before = each if each.losses is not None else before
    known = [each.losses for each in ordered if each.losses is not None]
    return LearningCurve(
        points=tuple(points),
        outlook=outlook,
        validation_rows=len(known[-1].sums) if known else 0,
        seconds=round(sum(each.seconds for each in ordered if each.share < 1), 1),
    )


def outlook_of(gain: Interval, loss: float, growth: float) -> Outlook:
    """What the last step of a curve says.

    Args:
        gain: interval of the fall of the loss.
        loss: the loss after the fall.
        growth: factor by which the rows grew.
    """
    worthwhile = WORTHWHILE_GAIN * loss * math.log2(growth)
    low, high = gain
    if high < worthwhile:
        return "NotLikelyToHelp"
    return "LikelyToHelp" if low > 0 else "Unknown"


def _point(
    each: MeasuredShare, before: MeasuredShare | None, seed: int
) -> tuple[LearningCurvePoint, Outlook]:
    point = LearningCurvePoint(share=each.share, rows=each.rows, problem=each.problem)
    losses = each.losses
    if losses is None:
        return point, "Unknown"
    weights = np.array(losses.weights, dtype=float)
    mine = np.array(losses.sums)
    update: dict[str, float] = {"loss": losses.mean}
    interval = _interval(_mean, (mine, weights), seed)
    if interval is not None:
        update |= {"loss_low": interval[0], "loss_high": interval[1]}
    outlook: Outlook = "Unknown"
    if before is not None and before.losses is not None:
        update["gain"] = before.losses.mean - losses.mean
        fallen = np.array(before.losses.sums) - mine
        gain = _interval(_mean, (fallen, weights), seed)
        if gain is not None:
            update |= {"gain_low": gain[0], "gain_high": gain[1]}
            outlook = outlook_of(gain, losses.mean, each.rows / before.rows)
    return point.model_copy(update={name: _rounded(value) for name, value in update.items()}), outlook


def _mean(sums: Any, weights: Any, axis: int = -1) -> Any:
    return sums.sum(axis=axis) / weights.sum(axis=axis)


def _interval(statistic: Statistic, data: tuple[Any, Any], seed: int) -> Interval | None:
    """None if there are too few rows, or if the bootstrap has no result."""
    rows = len(data[0])
    if rows < MIN_ROWS:
        return None
    per_weight = data[0] / np.maximum(data[1], 1)
    if np.ptp(per_weight) == 0:
        return float(per_weight[0]), float(per_weight[0])
    generator = np.random.default_rng(seed)
    if rows > MAX_UNITS:
        units = generator.permutation(rows) % MAX_UNITS
        first, second = (np.bincount(units, each) for each in data)
        data = (first, second)
    result = bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_FIGURES // len(data[0])),
        method="BCa",
        rng=generator,
    )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
