# SPDX-License-Identifier: Apache-2.0
"""Whether measured values meet the limits of a gate: the operator decides by it, and the page shows it.

The module does not import pydantic, so that the reports can import it.
"""

from dataclasses import dataclass
from typing import Final, Literal, Self

LimitVerdict = Literal["Passed", "Failed", "Undecided"]
"""Whether the rows meet one limit of a gate. Undecided: its bounds lie on both sides, or there are none."""

TOLERANCE: Final = 1e-9
"""Tolerance for rounding of binary fractions, so that a gain of 0.7 - 0.4 reaches a minimum of 0.3."""


@dataclass(frozen=True, slots=True)
class GateLimit:
    """A limit that a gate sets for a value or a gain. The operator and the page decide by it."""

    limit: float
    is_minimum: bool
    is_strict: bool = False
    """Whether a value must be beyond the limit."""

    @classmethod
    def of_gain(cls, min_gain: float) -> Self:
        """The limit of a gain. 0 is strict: it must not promote a model that learned nothing."""
        return cls(min_gain, is_minimum=True, is_strict=min_gain == 0)

    def is_met_by(self, value: float) -> bool:
        """Whether a value meets the limit, up to rounding."""
        beyond = value - self.limit if self.is_minimum else self.limit - value
        return beyond > TOLERANCE if self.is_strict else beyond >= -TOLERANCE

    def verdict(
        self, value: float, low: float | None, high: float | None, confidence: float | None
    ) -> LimitVerdict:
        """Decide by one-sided bounds, where None is unknown; without a confidence by the value."""
        if confidence is None:
            return "Passed" if self.is_met_by(value) else "Failed"
        near, far = (low, high) if self.is_minimum else (high, low)
        if near is not None and self.is_met_by(near):
            return "Passed"
        return "Failed" if far is not None and not self.is_met_by(far) else "Undecided"
