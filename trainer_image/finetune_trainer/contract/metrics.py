# SPDX-License-Identifier: Apache-2.0
"""Metrics of an evaluation. All other code reads their properties from `METRICS`.

A new metric is a row here and the module that computes it, with its row in
`finetune_trainer.evaluate.metrics.registry` or `finetune_trainer.scoring.textmetrics.table`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field

METRIC_PATTERN: Final = r"^[a-z][a-z0-9_]{0,39}(/[a-z0-9]([-a-z0-9_.]{0,38}[a-z0-9])?)?$"
Metric = Annotated[str, Field(pattern=METRIC_PATTERN)]
"""Name of a metric: a row of `METRICS`, or the kind and name of one that the user supplies."""


MetricNeed = Literal["answers", "losses", "pairs", "labels", "json", "pattern", "tools"]
"""What a metric reads.

- answers: the generated answers
- losses: the losses of expected answers
- pairs: rows with a chosen and a rejected answer
- labels: expected answers that are labels of a classification
- json: expected answers in JSON
- pattern: `MetricOptions.pattern`
- tools: expected tool calls
"""
MetricKind = Literal["Proportion", "Mean", "Aggregate"]
"""How the score follows from the rows.

- Proportion: each row has the value 0 or 1, and the score is the share of rows with 1
- Mean: the score is the mean of the rows' values
- Aggregate: the score is computed from all rows together
"""


ANSWERS: Final[frozenset[MetricNeed]] = frozenset({"answers"})
LOSSES: Final[frozenset[MetricNeed]] = frozenset({"losses"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """Properties of a metric."""

    description: str
    """Meaning of the value, as part of a sentence."""
    needs: frozenset[MetricNeed]
    kind: MetricKind = "Proportion"
    range: tuple[float, float] = (0, 1)
    """Min and max value."""
    lower_is_better: bool = False
    is_per_token: bool = False
    """Whether the unit is a token, so that values of models with different tokenizers cannot be compared."""
    in_rollouts: bool = False
    """Whether the analysis of a rollout measures it: texts are enough for it, and it needs no PyTorch."""

    @property
    def is_fraction(self) -> bool:
        """Whether the value is between 0 and 1."""
        return self.range == (0, 1)

    @property
    def needs_more_than_answers(self) -> bool:
        """Whether the dataset or the options can lack what the metric needs."""
        return not self.needs <= ANSWERS | LOSSES

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
    "exact_match": MetricInfo(
        description="share of rows whose answer equals the expected answer exactly",
        needs=ANSWERS,
        in_rollouts=True,
    ),
    "loss": MetricInfo(
        description="mean loss of the expected answers, in nats per token",
        needs=LOSSES,
        kind="Mean",
        range=(0, math.inf),
        lower_is_better=True,
        is_per_token=True,
    ),
    "preference_accuracy": MetricInfo(
        description="share of pairs whose chosen answer is more likely than the rejected one",
        needs=LOSSES | {"pairs"},
    ),
    "f1_token": MetricInfo(
        description="mean F1 of the words of the answer and of the expected answer, as in SQuAD",
        needs=ANSWERS,
        kind="Mean",
    ),
    "normalized_match": MetricInfo(
        description="share of rows whose answer equals the expected answer except for case, spaces and"
        " punctuation at the end",
        needs=ANSWERS,
        in_rollouts=True,
    ),
    "accuracy": MetricInfo(
        description="share of rows whose answer names the correct label", needs=ANSWERS | {"labels"}
    ),
    "macro_f1": MetricInfo(
        description="mean of the F1 of each label", needs=ANSWERS | {"labels"}, kind="Aggregate"
    ),
    "rouge_l": MetricInfo(
        description="mean F1 of the longest common subsequence of words, ROUGE-L",
        needs=ANSWERS,
        kind="Mean",
        in_rollouts=True,
    ),
    "chrf": MetricInfo(
        description="F2 of the character n-grams of all answers together, chrF",
        needs=ANSWERS,
        kind="Aggregate",
    ),
    "json_valid": MetricInfo(
        description="share of answers that are valid JSON, by options.jsonSchema if it is set", needs=ANSWERS
    ),
    "json_fields": MetricInfo(
        description="mean share of the fields of the expected JSON that the answer has with the same value",
        needs=ANSWERS | {"json"},
        kind="Mean",
    ),
    "regex_match": MetricInfo(
        description="share of answers that match options.pattern", needs=ANSWERS | {"pattern"}
    ),
    "tool_call_match": MetricInfo(
        description="share of rows whose answer makes the expected tool calls", needs=ANSWERS | {"tools"}
    ),
    "answer_tokens": MetricInfo(
        description="mean length of the answers in tokens",
        needs=ANSWERS,
        kind="Mean",
        range=(0, math.inf),
        lower_is_better=True,
    ),
    "truncated": MetricInfo(
        description="share of answers that reached the max number of tokens",
        needs=ANSWERS,
        lower_is_better=True,
    ),
    "perplexity": MetricInfo(
        description="perplexity of the expected answers, which is exp(loss)",
        needs=LOSSES,
        kind="Aggregate",
        range=(1, math.inf),
        lower_is_better=True,
        is_per_token=True,
    ),
}
CUSTOM: Final = "custom"
JUDGE: Final = "judge"
TASK: Final = "task"
FAMILIES: Final[Mapping[str, MetricInfo]] = {
    CUSTOM: MetricInfo(
        description="mean of what a function of the user returns",
        needs=ANSWERS,
        kind="Mean",
        range=(-math.inf, math.inf),
    ),
    JUDGE: MetricInfo(
        description="share of rows on which a judge prefers the answer of the tuned model, ties half",
        needs=ANSWERS,
        kind="Mean",
    ),
    TASK: MetricInfo(
        description="share of the rows of a task of general ability that are answered correctly",
        needs=frozenset(),
    ),
}
"""Metrics that users name, as FAMILY/NAME: what all metrics of a family have in common."""
DEFAULT_METRICS: Final[tuple[Metric, ...]] = ("exact_match", "loss")
"""Metrics of a run that names none."""
VALIDATION_METRIC: Final[Metric] = "loss"
"""Metric that training measures on the validation rows."""


def find_metric(metric: Metric) -> MetricInfo | None:
    """The properties of a metric; None if only a newer release knows it."""
    return METRICS.get(metric) or FAMILIES.get(metric.partition("/")[0])


def is_named_by_user(metric: Metric) -> bool:
    """Whether the metric belongs to a family of this release."""
    return metric not in METRICS and find_metric(metric) is not None


def metrics_where(predicate: Callable[[MetricInfo], bool]) -> tuple[Metric, ...]:
    """Metrics that meet the predicate, in the order of the table."""
    return tuple(metric for metric, info in METRICS.items() if predicate(info))
