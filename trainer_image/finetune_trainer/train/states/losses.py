"""The losses of a run: whether its last steps have diverged, and their curve in bounded space.

A loss is high when it is more than `HIGH_LOSS_FACTOR` times the median of the steps before. A few such steps
happen, with rows that are unlike the others; `MAX_HIGH_LOSS_STEPS` in a row do not. The curve is equal for
equal runs however often they were interrupted.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from finetune_trainer.contract.results import LossPoint

HIGH_LOSS_FACTOR: Final = 10
MAX_HIGH_LOSS_STEPS: Final = 5
MEDIAN_STEPS: Final = 50
"""Steps that the median is taken of."""
MIN_STEPS: Final = 20
"""Before so many are known no loss is high: the first ones fall fast."""
MIN_HIGH_LOSS: Final = 1.0
"""Nats a token. What has been learned by heart has a median so near zero that ten times of it is nothing."""

MAX_POINTS: Final = 100
MAX_SHOWN_POINTS: Final = 32
"""What a result and a Checkpoint have of them."""


class StoredModel(BaseModel):
    """A part of a stored state. Aliases are its keys there, which keep the names of the first release."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class TrainingPoint(StoredModel):
    """Training loss of some steps in a row."""

    step: int
    """The last of them."""
    steps: int
    loss_sum: float = Field(alias="nats")
    label_tokens: int = Field(alias="labels")

    @property
    def loss(self) -> float:
        """Token mean in nats."""
        return self.loss_sum / self.label_tokens

    def joined(self, other: "TrainingPoint") -> "TrainingPoint":
        """With the steps that follow."""
        return TrainingPoint(
            step=other.step,
            steps=self.steps + other.steps,
            loss_sum=self.loss_sum + other.loss_sum,
            label_tokens=self.label_tokens + other.label_tokens,
        )


class ValidationPoint(BaseModel):
    """The lowest validation loss, in nats a token, of some epochs in a row."""

    step: int
    loss: float
    epochs: int = 1

    def joined(self, other: "ValidationPoint") -> "ValidationPoint":
        """With the epochs that follow."""
        lower = self if self.loss <= other.loss else other
        return ValidationPoint(step=lower.step, loss=lower.loss, epochs=self.epochs + other.epochs)


class LossCurve(StoredModel):
    """At most `MAX_POINTS` points of each kind; when they are full, neighbours are joined."""

    points: list[TrainingPoint] = []
    steps_per_point: int = Field(default=1, alias="steps_a_point")
    validation: list[ValidationPoint] = []
    epochs_per_point: int = Field(default=1, alias="epochs_a_point")

    def add_step(self, loss_sum: float, label_tokens: int) -> None:
        """The next step's summed loss and labelled tokens."""
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
        """The validation loss after a step that ends an epoch."""
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
        """At most `MAX_SHOWN_POINTS` points, to four digits, with the last validation loss of their steps."""
        points = self.points
        while len(points) > MAX_SHOWN_POINTS:
            points = _halved(points)
        return tuple((point.step, _rounded(point.loss), self._validated(point)) for point in points)

    def _validated(self, point: TrainingPoint) -> float | None:
        first = point.step - point.steps + 1
        losses = [each.loss for each in self.validation if first <= each.step <= point.step]
        return _rounded(losses[-1]) if losses else None


def _halved(points: Sequence[TrainingPoint]) -> list[TrainingPoint]:
    """Each two neighbours as one; of an odd number the last stays alone."""
    joined = [first.joined(second) for first, second in zip(points[::2], points[1::2], strict=False)]
    return joined if len(points) % 2 == 0 else [*joined, points[-1]]


def _rounded(loss: float) -> float:
    return float(f"{loss:.4g}")


class RecentLosses(BaseModel):
    """Losses in nats a labelled token, one an optimizer step; of bounded size, and exact across restarts."""

    usual: list[float] = []
    """The newest ones that were not high, at most `MEDIAN_STEPS`."""
    high_steps: int = 0
    """How many of the newest were high in a row."""

    @property
    def median(self) -> float:
        """Of the usual losses. Raises statistics.StatisticsError where there is none yet."""
        return median(self.usual)

    @property
    def diverged(self) -> bool:
        """Whether going on makes nothing better."""
        return self.high_steps >= MAX_HIGH_LOSS_STEPS

    def add(self, loss: float) -> None:
        """Count one optimizer step."""
        if len(self.usual) >= MIN_STEPS and loss > max(HIGH_LOSS_FACTOR * self.median, MIN_HIGH_LOSS):
            self.high_steps += 1
            return
        self.high_steps = 0
        self.usual = [*self.usual, loss][-MEDIAN_STEPS:]
