# SPDX-License-Identifier: Apache-2.0
"""How many rows decide a gate, by the power formula of a one-sided test.

Rows = ((z(confidence) × deviation at the bound + z(power) × deviation at the value) / distance)², where z is
the quantile of the normal distribution, and the distance is that of the value from the bound. Fleiss, J. L.,
Levin, B., and Paik, M. C. (2003). Statistical Methods for Rates and Proportions, section 2.5.
"""

import math
from typing import Final

from scipy.stats import norm

from finetune_trainer.statistics.estimate import Estimate

POWER: Final = 0.8
"""Probability that the gate is decided with that number of rows, if the true value is the measured one."""
MAX_ROWS: Final = 1_000_000
"""More rows are stated as this number."""


def rows_in_all(estimate: Estimate, bound: float, confidence: float) -> int | None:
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
