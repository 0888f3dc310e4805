"""Metrics of an evaluation. All other code reads their properties from `METRICS`.

A new metric is a row here and the module that computes it, with its row in
`finetune_trainer.evaluate.metrics.registry`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

METRIC_PATTERN: Final = r"^[a-z][a-z0-9_]{0,39}(/[a-z0-9]([-a-z0-9_.]{0,38}[a-z0-9])?)?$"
Metric = Annotated[str, Field(pattern=METRIC_PATTERN)]
"""Name of a metric: a row of `METRICS`, or the kind and name of one that the user supplies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """Properties of a metric."""

    description: str
    """Meaning of the value, as part of a sentence."""
    range: tuple[float, float] = (0, 1)
    """Min and max value."""
    lower_is_better: bool = False
    needs_pairs: bool = False
    """Whether each row must have a chosen and a rejected answer."""

    @property
    def is_fraction(self) -> bool:
        """Whether the value is between 0 and 1."""
        return self.range == (0, 1)

    @property
    def summary(self) -> str:
        """The description with range and direction."""
        low, high = self.range
        bounds = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
        direction = "lower" if self.lower_is_better else "higher"
        return f"{self.description} ({bounds}, {direction} is better)"

    def gain(self, value: float, over: float) -> float:
        """Improvement of a value over another one; negative if it is worse."""
        return over - value if self.lower_is_better else value - over


METRICS: Final[Mapping[Metric, MetricInfo]] = {
    "exact_match": MetricInfo(description="share of rows whose answer equals the expected answer exactly"),
    "loss": MetricInfo(
        description="mean loss of the expected answers, in nats per token",
        range=(0, math.inf),
        lower_is_better=True,
    ),
    "preference_accuracy": MetricInfo(
        description="share of pairs whose chosen answer is more likely than the rejected one",
        needs_pairs=True,
    ),
    "f1_token": MetricInfo(
        description="mean F1 of the words of the answer and of the expected answer, as in SQuAD"
    ),
}
DEFAULT_METRICS: Final[tuple[Metric, ...]] = ("exact_match", "loss")
"""Metrics of a run that names none."""
VALIDATION_METRIC: Final[Metric] = "loss"
"""Metric that training measures on the validation rows."""


def metrics_where(predicate: Callable[[MetricInfo], bool]) -> tuple[Metric, ...]:
    """Metrics that meet the predicate, in the order of the table."""
    return tuple(metric for metric, info in METRICS.items() if predicate(info))
