# SPDX-License-Identifier: Apache-2.0
"""Difference of two shares of the same rows, by the score interval of Tango.

Tango, T. (1998). Equivalence test and confidence interval for the difference in proportions for the
paired-sample design. Statistics in Medicine 17(8), 891-908, equations (24) to (26).
"""

import math
from dataclasses import dataclass

from finetune_trainer.statistics.estimate import ConfidenceInterval
from finetune_trainer.statistics.scoreinterval import BEYOND_ANY_LEVEL, score_interval


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
