# SPDX-License-Identifier: Apache-2.0
"""An estimate: a figure of rows, the interval of what it estimates, and how many rows would decide a gate.

The power formula of a one-sided test gives the number of rows:

rows = ((z(confidence) × deviation at the bound + z(power) × deviation at the value) / distance)², where z is
the quantile of the normal distribution, and the distance is that of the value from the bound. Fleiss, J. L.,
Levin, B., and Paik, M. C. (2003). Statistical Methods for Rates and Proportions, section 2.5.
"""

import math
from dataclasses import dataclass
from typing import Final, Protocol

from scipy.stats import norm

SHOWN_LEVEL: Final = 0.95
"""Level of the two-sided intervals that are shown."""


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """Values that the data do not exclude. A bound is infinite if the data do not limit that side."""

    low: float
    high: float


class Estimate(Protocol):
    """A figure of the measured rows, as an estimate for all rows of their kind."""

    @property
    def value(self) -> float:
        """The figure."""

    @property
    def rows(self) -> int:
        """Number of rows that it was computed from."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the figure times the square root of `rows`, never 0 for bounded values.

        The figure from n rows of the same kind has about this deviation divided by the square root of n.
        """

    def deviation_at(self, value: float) -> float:
        """Return what `deviation` would be if the figure for all rows of their kind were `value`."""

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the two-sided interval at this level, with equal tails. It contains `value`.

        So each of its bounds is a one-sided bound at confidence `(1 + level) / 2`.
        """


def one_sided(estimate: Estimate, confidence: float) -> ConfidenceInterval:
    """Return both one-sided bounds at `confidence`, which is above 0.5.

    Each bound alone holds with that confidence, and so does a decision by one of them.
    """
    return estimate.interval(2 * confidence - 1)


POWER: Final = 0.8
"""Probability that the gate is decided with that number of rows, if the true value is the measured one."""
MAX_ROWS: Final = 1_000_000
"""More rows are stated as this number."""


def compute_needed_rows(estimate: Estimate, bound: float, confidence: float) -> int | None:
    """Return the number of rows with which a gate is decided, at most `MAX_ROWS`; None if no number does.

    Args:
        estimate: the figure, which is assumed to be that of all rows of their kind.
        bound: of the gate.
        confidence: of the gate.
    """
    distance = estimate.value - bound
    if distance == 0 or not math.isfinite(estimate.deviation):
        return None
    at_bound = float(norm.ppf(confidence)) * estimate.deviation_at(bound)
    at_value = float(norm.ppf(POWER)) * estimate.deviation
    return math.ceil(min(((at_bound + at_value) / distance) ** 2, MAX_ROWS))
