# SPDX-License-Identifier: Apache-2.0
"""Difference of the shares of two independent samples, by the score interval of Miettinen and Nurminen.

Miettinen, O. and Nurminen, M. (1985). Comparative analysis of two rates. Statistics in Medicine 4(2),
213-226, equations (8) and (9), and the closed form in appendix I.
"""

import math
from dataclasses import dataclass

from finetune_trainer.statistics.estimate import ConfidenceInterval
from finetune_trainer.statistics.proportion import Proportion
from finetune_trainer.statistics.scoreinterval import BEYOND_ANY_LEVEL, score_interval


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
