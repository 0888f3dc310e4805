"""Whether training has diverged, told by the losses of its last steps.

A loss is high when it is more than `FACTOR` times the median of the steps before. A few such steps happen,
with rows that are unlike the others; `MOST_HIGH_STEPS` in a row do not.
"""

from statistics import median
from typing import Final

from pydantic import BaseModel

FACTOR: Final = 10
MOST_HIGH_STEPS: Final = 5
WINDOW: Final = 50
"""Steps that the median is taken of."""
FEWEST_STEPS: Final = 20
"""Before so many are known no loss is high: the first ones fall fast."""
LEAST_HIGH_LOSS: Final = 1.0
"""Nats a token. What has been learned by heart has a median so near zero that ten times of it is nothing."""


class RecentLosses(BaseModel):
    """Losses in nats a labelled token, one an optimizer step; of bounded size, and exact across restarts."""

    usual: list[float] = []
    """The newest ones that were not high, at most `WINDOW`."""
    high_steps: int = 0
    """How many of the newest were high in a row."""

    @property
    def median(self) -> float:
        """Of the usual losses. Raises statistics.StatisticsError where there is none yet."""
        return median(self.usual)

    @property
    def diverged(self) -> bool:
        """Whether going on makes nothing better."""
        return self.high_steps >= MOST_HIGH_STEPS

    def add(self, loss: float) -> None:
        """Count one optimizer step."""
        if len(self.usual) >= FEWEST_STEPS and loss > max(FACTOR * self.median, LEAST_HIGH_LOSS):
            self.high_steps += 1
            return
        self.high_steps = 0
        self.usual = [*self.usual, loss][-WINDOW:]
