# SPDX-License-Identifier: Apache-2.0
"""Share of rows whose answer names the correct label. An answer that names none is wrong."""

from functools import partial

from finetune_trainer.evaluate.measure import Measure, right_answers
from finetune_trainer.scoring.metric_scope import MetricScope


def measure(scope: MetricScope) -> Measure:
    """The measure for the labels of the scope."""
    return Measure(partial(right_answers, scope))
