# SPDX-License-Identifier: Apache-2.0
"""Share of rows that are right, by Wilson's score interval or the exact one of Clopper and Pearson."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from scipy.stats import binomtest

from finetune_trainer.statistics.estimate import ConfidenceInterval

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
