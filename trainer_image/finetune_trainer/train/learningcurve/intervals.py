# SPDX-License-Identifier: Apache-2.0
"""Intervals of a learning curve, and what they say about more rows.

Differences are paired: both losses are those of the same validation rows. Intervals do not cover what another
seed would change.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from finetune_trainer.contract.results import LearningCurve, LearningCurvePoint, Outlook
from finetune_trainer.statistics.bootstrap import Numbers, resampled_mean
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, ConfidenceInterval
from finetune_trainer.train.learningcurve.record import MeasuredShare

WORTHWHILE_GAIN: Final = 0.02
"""Fall of the loss per doubling of the rows, relative to the loss, below which more rows are not worth it."""
DIGITS: Final = 5
LOSSES: Final = (0.0, math.inf)
GAINS: Final = (-math.inf, math.inf)
"""Ranges of the figures."""


def learning_curve(measured: Sequence[MeasuredShare], groups: Sequence[str] | None = None) -> LearningCurve:
    """The curve of finished trainings.

    Args:
        groups: the group of each validation row; None if the rows are independent.
    """
    points: list[LearningCurvePoint] = []
    before: MeasuredShare | None = None
    ordered = sorted(measured, key=lambda each: each.share)
    outlook: Outlook = "Unknown"
    for each in ordered:
        point, outlook = _point(each, before, groups)
        points.append(point)
        before = each if each.losses is not None else before
    known = [each.losses for each in ordered if each.losses is not None]
    return LearningCurve(
        points=tuple(points),
        outlook=outlook,
        validation_rows=len(known[-1].sums) if known else 0,
        seconds=round(sum(each.seconds for each in ordered if each.share < 1), 1),
    )


def outlook_of(gain: ConfidenceInterval, loss: float, growth: float) -> Outlook:
    """What the last step of a curve says.

    Args:
        gain: interval of the fall of the loss.
        loss: the loss after the fall.
        growth: factor by which the rows grew.
    """
    worthwhile = WORTHWHILE_GAIN * loss * math.log2(growth)
    if gain.high < worthwhile:
        return "NotLikelyToHelp"
    return "LikelyToHelp" if gain.low > 0 else "Unknown"


def _point(
    each: MeasuredShare, before: MeasuredShare | None, groups: Sequence[str] | None
) -> tuple[LearningCurvePoint, Outlook]:
    point = LearningCurvePoint(share=each.share, rows=each.rows, problem=each.problem)
    losses = each.losses
    if losses is None:
        return point, "Unknown"
    weights = np.array(losses.weights, dtype=float)
    mine = np.array(losses.sums)
    update: dict[str, float] = {"loss": losses.mean}
    interval = _interval(mine, weights, groups, LOSSES)
    if interval is not None:
        update |= {"loss_low": interval.low, "loss_high": interval.high}
    outlook: Outlook = "Unknown"
    if before is not None and before.losses is not None:
        update["gain"] = before.losses.mean - losses.mean
        gain = _interval(np.array(before.losses.sums) - mine, weights, groups, GAINS)
        if gain is not None:
            update |= {"gain_low": gain.low, "gain_high": gain.high}
            outlook = outlook_of(gain, losses.mean, each.rows / before.rows)
    return point.model_copy(update={name: _rounded(value) for name, value in update.items()}), outlook


def _interval(
    sums: Numbers, weights: Numbers, groups: Sequence[str] | None, limits: tuple[float, float]
) -> ConfidenceInterval | None:
    """The interval of a mean, from the sum and the weight of each row; None if the rows give none."""
    mean = resampled_mean(sums, groups, limits, weights)
    return mean.interval(SHOWN_LEVEL) if mean.has_interval else None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
