"""Rules and descriptions of fields that hold metrics, from the contract's table."""

from collections.abc import Sequence
from typing import Final

from finetune_trainer.contract.metrics import METRICS, Metric, metrics_where

FRACTIONS: Final = metrics_where(lambda info: info.is_fraction)
OTHERS: Final = metrics_where(lambda info: not info.is_fraction)
LOWER_IS_BETTER: Final = metrics_where(lambda info: info.lower_is_better)
HIGHER_IS_BETTER: Final = metrics_where(lambda info: not info.lower_is_better)
OF_PAIRS: Final = metrics_where(lambda info: info.needs_pairs)


def listed(metrics: Sequence[Metric]) -> str:
    """The names in a sentence: A, B and C."""
    *others, last = metrics
    return f"{', '.join(others)} and {last}" if others else last


def is_one_of(expression: str, metrics: Sequence[Metric]) -> str:
    """CEL: whether a string is one of these names."""
    if len(metrics) == 1:
        return f"{expression} == '{metrics[0]}'"
    return f"{expression} in [{', '.join(repr(metric) for metric in metrics)}]"


def is_none_of(expression: str, metrics: Sequence[Metric]) -> str:
    """CEL: whether a string is none of these names."""
    if len(metrics) == 1:
        return f"{expression} != '{metrics[0]}'"
    return f"!({is_one_of(expression, metrics)})"


FRACTION_ADVICE: Final = f"{listed(FRACTIONS)} are fractions between 0 and 1: write 0.8 for 80 %"
DESCRIPTION: Final = "; ".join(f"{metric}: {info.summary}" for metric, info in METRICS.items()) + "."
