# SPDX-License-Identifier: Apache-2.0
"""Rules and descriptions of fields that hold metrics, from the contract's table."""

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.cel import is_one_of
from finetune_operator.api.meta import pattern_advice
from finetune_trainer.contract.metrics import (
    DEFAULT_METRICS,
    FAMILIES,
    METRIC_PATTERN,
    METRICS,
    metrics_where,
)
from finetune_trainer.contract.vocabulary import listed

OTHER_METRICS: Final = metrics_where(lambda info: not info.is_fraction)
LOWER_IS_BETTER: Final = metrics_where(lambda info: info.lower_is_better)
HIGHER_IS_BETTER: Final = metrics_where(lambda info: not info.lower_is_better)
PAIR_METRICS: Final = metrics_where(lambda info: "pairs" in info.needs)
PATTERN_METRICS: Final = metrics_where(lambda info: "pattern" in info.needs)


def is_in_family(expression: str, families: Iterable[str]) -> str:
    """CEL: the metric belongs to one of these families."""
    return " || ".join(f"{expression}.startsWith('{family}/')" for family in families)


FRACTION_ADVICE: Final = (
    f"bounds are fractions between 0 and 1, except of {listed(OTHER_METRICS)}: write 0.8 for 80 %"
)
UNBOUNDED_FAMILIES: Final = tuple(family for family, info in FAMILIES.items() if not info.is_fraction)
NAMED_METRICS: Final = listed(tuple(f"{family}/NAME" for family in FAMILIES), "or")
DESCRIPTION: Final = "; ".join(f"{metric}: {info.summary}" for metric, info in METRICS.items()) + "."

MetricName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=81,
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": f"{is_one_of('self', tuple(METRICS))} || {is_in_family('self', FAMILIES)}",
                    "message": f"unknown metric: write {listed(tuple(METRICS), 'or')}, or {NAMED_METRICS}",
                }
            ]
        },
    ),
]
"""A metric in a spec."""
ScoredMetric = Annotated[
    str,
    Field(
        min_length=1,
        max_length=81,
        pattern=METRIC_PATTERN,
        json_schema_extra=pattern_advice(
            METRIC_PATTERN, f"use the name of a metric, for example {DEFAULT_METRICS[0]} or custom/tone"
        ),
    ),
]
"""A metric in a status, possibly one that only a newer release knows."""
