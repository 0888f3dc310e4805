# SPDX-License-Identifier: Apache-2.0
"""Share of answers that match the pattern as a whole."""

from finetune_trainer.evaluate.measure import Measure, measure_texts
from finetune_trainer.scoring.metric_scope import MetricScope


def measure(scope: MetricScope) -> Measure:
    """The measure for the pattern of the scope."""
    pattern = scope.pattern
    if pattern is None:
        raise ValueError("the scope was found for other metrics")
    return Measure(measure_texts(lambda answer, _: float(pattern.matches(answer))))
