"""The losses of a run: whether its last steps have diverged, and their curve in bounded space.

A loss is high when it is more than `FACTOR` times the median of the steps before. A few such steps happen,
with rows that are unlike the others; `MOST_HIGH_STEPS` in a row do not. The curve is equal for equal runs
however often they were interrupted.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel

from finetune_trainer.contract.results import LossPoint

FACTOR: Final = 10
MOST_HIGH_STEPS: Final = 5
WINDOW: Final = 50
"""Steps that the median is taken of."""
FEWEST_STEPS: Final = 20
"""Before so many are known no loss is high: the first ones fall fast."""
LEAST_HIGH_LOSS: Final = 1.0
"""Nats a token. What has been learned by heart has a median so near zero that ten times of it is nothing."""

MOST_POINTS: Final = 100
SHOWN_POINTS: Final = 32
"""What a result and a Checkpoint have of them."""


class Point(BaseModel):
    """Training loss of some steps in a row."""

    step: int
    """The last of them."""
    steps: int
    nats: float
    labels: int

    @property
    def loss(self) -> float:
        """Token mean in nats."""
        return self.nats / self.labels

    def joined(self, other: "Point") -> "Point":
        """With the steps that follow."""
        return Point(
            step=other.step,
            steps=self.steps + other.steps,
            nats=self.nats + other.nats,
            labels=self.labels + other.labels,
        )


class Validation(BaseModel):
    """The lowest validation loss, in nats a token, of some epochs in a row."""

    step: int
    loss: float
    epochs: int = 1

    def joined(self, other: "Validation") -> "Validation":
        """With the epochs that follow."""
        lower = self if self.loss <= other.loss else other
        return Validation(step=lower.step, loss=lower.loss, epochs=self.epochs + other.epochs)


class Curve(BaseModel):
    """At most `MOST_POINTS` points of each kind; when they are full, neighbours are joined."""

    points: list[Point] = []
    steps_a_point: int = 1
    validation: list[Validation] = []
    epochs_a_point: int = 1

    def add_step(self, nats: float, labels: int) -> None:
        """The next step's summed loss and labelled tokens."""
        last = self.points[-1] if self.points else None
        new = Point(step=last.step + 1 if last else 1, steps=1, nats=nats, labels=labels)
        if last is not None and last.steps < self.steps_a_point:
            self.points[-1] = last.joined(new)
            return
        if len(self.points) == MOST_POINTS:
            self.points = _halved(self.points)
            self.steps_a_point *= 2
        self.points.append(new)

    def add_validation(self, step: int, loss: float) -> None:
        """The validation loss after a step that ends an epoch."""
        new = Validation(step=step, loss=loss)
        if self.validation and self.validation[-1].epochs < self.epochs_a_point:
            self.validation[-1] = self.validation[-1].joined(new)
            return
        if len(self.validation) == MOST_POINTS:
            pairs = zip(self.validation[::2], self.validation[1::2], strict=True)
            self.validation = [first.joined(second) for first, second in pairs]
            self.epochs_a_point *= 2
        self.validation.append(new)

    def shown(self) -> tuple[LossPoint, ...]:
        """At most `SHOWN_POINTS` points, to four digits, with the last validation loss of their steps."""
        points = self.points
        while len(points) > SHOWN_POINTS:
            points = _halved(points)
        return tuple((point.step, _rounded(point.loss), self._validated(point)) for point in points)

    def _validated(self, point: Point) -> float | None:
        first = point.step - point.steps + 1
        losses = [each.loss for each in self.validation if first <= each.step <= point.step]
        return _rounded(losses[-1]) if losses else None


def _halved(points: Sequence[Point]) -> list[Point]:
    """Each two neighbours as one; of an odd number the last stays alone."""
    joined = [first.joined(second) for first, second in zip(points[::2], points[1::2], strict=False)]
    return joined if len(points) % 2 == 0 else [*joined, points[-1]]


def _rounded(loss: float) -> float:
    return float(f"{loss:.4g}")


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
