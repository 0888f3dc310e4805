# SPDX-License-Identifier: Apache-2.0
"""Shares of rows, differences of shares, and quantiles from counts, with closed intervals.

- Share of rows that are right: Wilson's score interval, or the exact one of Clopper and Pearson.
- Difference of the shares of two independent samples: the score interval of Miettinen and Nurminen.
  Miettinen, O. and Nurminen, M. (1985). Comparative analysis of two rates. Statistics in Medicine 4(2),
  213-226, equations (8) and (9), and the closed form in appendix I.
- Difference of two shares of the same rows: the score interval of Tango. Tango, T. (1998). Equivalence test
  and confidence interval for the difference in proportions for the paired-sample design. Statistics in
  Medicine 17(8), 891-908, equations (24) to (26).
- Quantile of values of which only the counts in the buckets of a histogram are known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from scipy.optimize import brentq
from scipy.stats import binomtest, norm

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


MIN_WILSON_ROWS: Final = 30
MIN_WILSON_COUNT: Final = 6
MAX_WILSON_SHARE: Final = 0.98
"""With fewer rows, with fewer right or fewer wrong rows, or for shares nearer to 0 or 1, Wilson's interval
covers less than it states: by the share alone, down to 84 % at 50 rows and a true share of 0.996, because 49
right rows are a share of 0.98. The exact interval covers at least what it states, and is wider. With these
bounds together, two-sided intervals at 95 % cover at least 92.5 % and one-sided bounds at least 90 %, for all
true shares from 0.001 to 0.999; with a count of 7 they would cover 98.8 % at 50 rows and a share of 0.95."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """Independent rows, each right or wrong."""

    right: int
    rows: int
    """At least 1."""

    @property
    def value(self) -> float:
        """Share of right rows."""
        return self.right / self.rows

    @property
    def deviation(self) -> float:
        """Of one row, with two right and two wrong rows added, as Agresti and Coull (1998) propose."""
        return self.deviation_at((self.right + 2) / (self.rows + 4))

    def deviation_at(self, value: float) -> float:
        """Return the standard deviation of one row for a share; 0 for one that is not between 0 and 1."""
        return math.sqrt(max(value * (1 - value), 0))

    @property
    def method(self) -> Literal["wilson", "exact"]:
        """Name of the method in SciPy."""
        few = self.rows < MIN_WILSON_ROWS or min(self.right, self.rows - self.right) < MIN_WILSON_COUNT
        extreme = max(self.value, 1 - self.value) > MAX_WILSON_SHARE
        return "exact" if few or extreme else "wilson"

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the interval at this level, between 0 and 1."""
        bounds = binomtest(self.right, self.rows).proportion_ci(level, self.method)
        return ConfidenceInterval(float(bounds.low), float(bounds.high))


@dataclass(frozen=True, slots=True)
class IndependentProportions:
    """The share of the first sample minus that of the second."""

    first: Proportion
    second: Proportion

    @property
    def value(self) -> float:
        """Difference of the shares."""
        return self.first.value - self.second.value

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the two-sided interval at this level, with equal tails, between -1 and 1."""
        return score_interval(self.value, self._score, level)

    def _score(self, difference: float) -> float:
        """The statistic of the hypothesis that the shares differ by `difference`. It falls as that grows."""
        if difference == self.value:
            return 0.0
        rows = self.first.rows + self.second.rows
        second = self._restricted(difference)
        first = min(max(second + difference, 0), 1)
        variance = first * (1 - first) / self.first.rows + second * (1 - second) / self.second.rows
        if variance <= 0:
            return math.copysign(BEYOND_ANY_LEVEL, self.value - difference)
        return (self.value - difference) / math.sqrt(variance * rows / (rows - 1))

    def _restricted(self, difference: float) -> float:
        """Maximum-likelihood estimate of the second share under the hypothesis."""
        first, second = self.first, self.second
        rows, right = first.rows + second.rows, first.right + second.right
        quadratic = ((first.rows + 2 * second.rows) * difference - rows - right) / (3 * rows)
        linear = ((second.rows * difference - rows - 2 * second.right) * difference + right) / rows
        constant = second.right * difference * (1 - difference) / rows
        cubic = quadratic**3 - quadratic * linear / 2 + constant / 2
        radius = math.copysign(math.sqrt(max(quadratic**2 - linear / 3, 0)), cubic)
        if radius == 0:
            return min(max(-quadratic, 0), 1)
        angle = (math.pi + math.acos(min(max(cubic / radius**3, -1), 1))) / 3
        return min(max(2 * radius * math.cos(angle) - quadratic, 0), 1)


@dataclass(frozen=True, slots=True)
class PairedProportions:
    """The same independent rows, each right or wrong for two models."""

    gained: int
    """Rows that only the first model answers right."""
    lost: int
    """Rows that only the second model answers right."""
    rows: int
    """All rows, at least 1."""

    @property
    def value(self) -> float:
        """Share of the first model minus share of the second."""
        return (self.gained - self.lost) / self.rows

    @property
    def deviation(self) -> float:
        """Of the difference of one row, with half a row added to each outcome, as Agresti and Min (2005) do.

        The outcomes are both right, only one, only the other, none.
        """
        gained, lost = ((count + 0.5) / (self.rows + 2) for count in (self.gained, self.lost))
        return math.sqrt(gained + lost - (gained - lost) ** 2)

    def deviation_at(self, value: float) -> float:
        """Return the deviation for another difference with the same share of rows that differ."""
        differing = self.deviation**2 + ((self.gained - self.lost) / (self.rows + 2)) ** 2
        return math.sqrt(max(differing - value**2, 0))

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the interval at this level, between -1 and 1."""
        return score_interval(self.value, self._score, level)

    def _score(self, difference: float) -> float:
        """The statistic of the hypothesis that the shares differ by `difference`. It falls as that grows."""
        surplus = self.gained - self.lost - self.rows * difference
        # Maximum-likelihood estimate of the share of lost rows under the hypothesis.
        linear = (2 * self.rows - self.gained + self.lost) * difference - self.gained - self.lost
        constant = -self.lost * difference * (1 - difference)
        lost = (math.sqrt(max(linear**2 - 8 * self.rows * constant, 0)) - linear) / (4 * self.rows)
        variance = self.rows * (2 * lost + difference * (1 - difference))
        if surplus == 0 or difference == self.value:
            return 0.0
        if variance <= 0:
            return math.copysign(BEYOND_ANY_LEVEL, surplus)
        return surplus / math.sqrt(variance)


@dataclass(frozen=True)
class HistogramQuantile:
    """Quantile of the positive values in a histogram."""

    edges: tuple[float, ...]
    """Upper edges of the buckets, ascending; the last is infinite."""
    counts: tuple[int, ...]
    """Number of values up to each edge. The last one, of all values, is at least 1."""
    quantile: float
    groups: int | None = None
    """Number of independent groups of values, at least 1. None: each value is independent.

    The values of a group may all be equal, so the interval is that of as many values as there are groups."""

    @property
    def rows(self) -> int:
        """Number of independent values."""
        values = self.counts[-1]
        return values if self.groups is None else min(self.groups, values)

    @cached_property
    def value(self) -> float:
        """The quantile by linear interpolation, as `histogram_quantile` of Prometheus computes it.

        It is the highest finite edge if the quantile is above that.
        """
        rank = self.quantile * self.counts[-1]
        index = next(index for index, count in enumerate(self.counts) if count >= rank)
        below_edge = self.edges[index - 1] if index else 0.0
        if math.isinf(self.edges[index]):
            return below_edge
        below = self.counts[index - 1] if index else 0
        return below_edge + (self.edges[index] - below_edge) * (rank - below) / (self.counts[index] - below)

    @property
    def is_within_edges(self) -> bool:
        """Whether the quantile is at most the highest finite edge."""
        return self.counts[-2] >= self.quantile * self.counts[-1] if len(self.counts) > 1 else False

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the two-sided interval at this level. The quantile is above its low bound.

        Its bounds are edges. The quantile is above an edge if the share of values up to the edge is below
        that of the quantile, and the interval of the share decides that. So the interval covers at least
        what it states.
        """
        low, high = 0.0, math.inf
        for edge, count in zip(self.edges, self.counts, strict=True):
            up_to_edge = round(count * self.rows / self.counts[-1])
            share = Proportion(up_to_edge, self.rows).interval(level)
            if share.high < self.quantile:
                low = edge
            if share.low >= self.quantile:
                high = edge
                break
        return ConfidenceInterval(low, high)
