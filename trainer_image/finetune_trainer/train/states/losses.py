# SPDX-License-Identifier: Apache-2.0
"""The losses of a run: detection of divergence, and a loss curve of bounded size.

A loss is high if it exceeds the median of the previous steps by `HIGH_LOSS_FACTOR`. Unusual rows cause a few
such steps; `MAX_HIGH_LOSS_STEPS` consecutive ones mean divergence. Interruptions do not change the curve.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel

from finetune_trainer.contract.results import LossPoint

HIGH_LOSS_FACTOR: Final = 10
MAX_HIGH_LOSS_STEPS: Final = 5
MEDIAN_STEPS: Final = 50
"""Number of steps in the running median."""
MIN_STEPS: Final = 20
"""Number of steps before any loss counts as high, because the loss falls fast at first."""
MIN_HIGH_LOSS: Final = 1.0
"""In nats per token. Memorized rows have a median near zero, and ten times that is still low."""

MAX_POINTS: Final = 100
"""Points of each kind in a stored curve."""
MAX_SHOWN_POINTS: Final = 32
"""Points in a result and in a Checkpoint."""


class TrainingPoint(BaseModel):
    """Training loss of consecutive steps."""

    step: int
    """The last step."""
    steps: int
    """Number of steps."""
    loss_sum: float
    label_tokens: int

    @property
    def loss(self) -> float:
        """Mean loss per token in nats, or per row."""
        return self.loss_sum / self.label_tokens

    def joined(self, other: "TrainingPoint") -> "TrainingPoint":
        """Join with the point of the following steps."""
        return TrainingPoint(
            step=other.step,
            steps=self.steps + other.steps,
            loss_sum=self.loss_sum + other.loss_sum,
            label_tokens=self.label_tokens + other.label_tokens,
        )


class ValidationPoint(BaseModel):
    """The lowest validation loss of consecutive epochs, in the trainer's unit."""

    step: int
    loss: float
    epochs: int = 1

    def joined(self, other: "ValidationPoint") -> "ValidationPoint":
        """Join with the point of the following epochs."""
        lower = self if self.loss <= other.loss else other
        return ValidationPoint(step=lower.step, loss=lower.loss, epochs=self.epochs + other.epochs)


class LossCurve(BaseModel):
    """Training and validation losses, at most `MAX_POINTS` each; a full list joins neighbouring points."""

    points: list[TrainingPoint] = []
    steps_per_point: int = 1
    validation: list[ValidationPoint] = []
    epochs_per_point: int = 1

    def add_step(self, loss_sum: float, label_tokens: int) -> None:
        """Add the summed loss and the number of labelled tokens of the next step."""
        last = self.points[-1] if self.points else None
        new = TrainingPoint(
            step=last.step + 1 if last else 1, steps=1, loss_sum=loss_sum, label_tokens=label_tokens
        )
        if last is not None and last.steps < self.steps_per_point:
            self.points[-1] = last.joined(new)
            return
        if len(self.points) == MAX_POINTS:
            self.points = _halved(self.points)
            self.steps_per_point *= 2
        self.points.append(new)

    def add_validation(self, step: int, loss: float) -> None:
        """Add the validation loss after the last step of an epoch."""
        new = ValidationPoint(step=step, loss=loss)
        if self.validation and self.validation[-1].epochs < self.epochs_per_point:
            self.validation[-1] = self.validation[-1].joined(new)
            return
        if len(self.validation) == MAX_POINTS:
            pairs = zip(self.validation[::2], self.validation[1::2], strict=True)
            self.validation = [first.joined(second) for first, second in pairs]
            self.epochs_per_point *= 2
        self.validation.append(new)

    def shown(self) -> tuple[LossPoint, ...]:
        """At most `MAX_SHOWN_POINTS` points to four digits, with the last validation loss of their steps."""
        points = self.points
        while len(points) > MAX_SHOWN_POINTS:
            points = _halved(points)
        return tuple((point.step, _rounded(point.loss), self._validation_loss(point)) for point in points)

    def _validation_loss(self, point: TrainingPoint) -> float | None:
        first = point.step - point.steps + 1
        losses = [each.loss for each in self.validation if first <= each.step <= point.step]
        return _rounded(losses[-1]) if losses else None


def _halved(points: Sequence[TrainingPoint]) -> list[TrainingPoint]:
    """Join each pair of neighbouring points; of an odd number, the last stays single."""
    joined = [first.joined(second) for first, second in zip(points[::2], points[1::2], strict=False)]
    return joined if len(points) % 2 == 0 else [*joined, points[-1]]


def _rounded(loss: float) -> float:
    return float(f"{loss:.4g}")


class RecentLosses(BaseModel):
    """Recent losses in nats per labelled token, one per optimizer step; bit-identical across restarts."""

    usual: list[float] = []
    """The newest losses that were not high, at most `MEDIAN_STEPS`."""
    high_steps: int = 0
    """Number of consecutive high losses up to the newest."""

    @property
    def median(self) -> float:
        """Median of the usual losses. Raises statistics.StatisticsError if there are none yet."""
        return median(self.usual)

    @property
    def diverged(self) -> bool:
        """Whether the loss has been high for too many consecutive steps."""
        return self.high_steps >= MAX_HIGH_LOSS_STEPS

    def add(self, loss: float) -> None:
        """Add the loss of one optimizer step."""
        if len(self.usual) >= MIN_STEPS and loss > max(HIGH_LOSS_FACTOR * self.median, MIN_HIGH_LOSS):
            self.high_steps += 1
            return
        self.high_steps = 0
        self.usual = [*self.usual, loss][-MEDIAN_STEPS:]
