# SPDX-License-Identifier: Apache-2.0
"""The learning curve of a run: what trainings on shares of its rows say about more rows."""

from collections.abc import Mapping
from typing import Final, Literal

from finetune_trainer.contract.base import Contract

Outlook = Literal["LikelyToHelp", "NotLikelyToHelp", "Unknown"]

OUTLOOKS: Final[Mapping[Outlook, str]] = {
    "LikelyToHelp": "More rows of this kind are likely to help",
    "NotLikelyToHelp": "More rows of this kind are not likely to help",
    "Unknown": "The data does not show whether more rows would help",
}
"""What a learning curve says about more rows, as a sentence without its period."""


class LearningCurvePoint(Contract):
    """A training on a share of the rows. Losses are in the trainer's unit, intervals two-sided at 95 %."""

    share: float
    """Share of the training rows; 1 for the run itself."""
    rows: int
    """Number of training rows."""
    loss: float | None = None
    """Lowest validation loss; None if the training failed."""
    loss_low: float | None = None
    loss_high: float | None = None
    gain: float | None = None
    """Loss of the previous point minus that of this one, on the same rows; positive if the loss fell."""
    gain_low: float | None = None
    gain_high: float | None = None
    problem: str | None = None
    """Why the training failed, as a sentence without its period."""


class LearningCurve(Contract):
    """The points by increasing share; the last one is the run itself."""

    points: tuple[LearningCurvePoint, ...] = ()
    outlook: Outlook = "Unknown"
    validation_rows: int = 0
    """Number of validation rows that each loss was measured on."""
    seconds: float = 0
    """Seconds of the trainings except the run itself, with repeated work."""
