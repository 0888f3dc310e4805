# SPDX-License-Identifier: Apache-2.0
"""The interval of a difference of shares by a score statistic."""

from collections.abc import Callable
from typing import Final

from scipy.optimize import brentq
from scipy.stats import norm

from finetune_trainer.statistics.estimate import ConfidenceInterval

BEYOND_ANY_LEVEL: Final = 1e9
"""The statistic where a difference is impossible."""


def score_interval(value: float, score: Callable[[float], float], level: float) -> ConfidenceInterval:
    """Return the two-sided interval at this level, with equal tails, between -1 and 1.

    Args:
        value: the estimated difference, between -1 and 1.
        score: statistic of the hypothesis that the shares differ by its argument. It falls as that grows.
        level: confidence, above 0 and below 1.
    """
    quantile = float(norm.ppf((1 + level) / 2))
    low = high = value
    if low > -1:
        low = float(brentq(lambda difference: score(difference) - quantile, -1, low))
    if high < 1:
        high = float(brentq(lambda difference: score(difference) + quantile, high, 1))
    return ConfidenceInterval(low, high)
