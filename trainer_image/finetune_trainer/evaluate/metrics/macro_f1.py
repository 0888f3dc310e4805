# SPDX-License-Identifier: Apache-2.0
"""Mean of the F1 of each label: a rare label counts as much as a frequent one.

It equals `f1_score(average="macro", zero_division=nan)` of scikit-learn for the given labels: a label that no
row expects and no answer names is left out.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.evaluate.measure import Measure, MeasuredRow, label_pair, required_labels, right_answers
from finetune_trainer.scoring.metric_scope import MetricScope


def measure(scope: MetricScope) -> Measure:
    """The measure for the labels of the scope. The value of a row is 1 for a right answer, otherwise 0."""
    labels = required_labels(scope)

    def statistics(row: MeasuredRow) -> NDArray[np.float64]:
        """Per label: whether it is expected and answered, whether it is answered, whether it is expected."""
        counts = np.zeros((3, len(labels)))
        expected, answered = label_pair(scope, row)
        counts[2, expected] = 1
        if answered is not None:
            counts[1, answered] = 1
            counts[0, answered] = answered == expected
        return counts.ravel()

    return Measure(partial(right_answers, scope), statistics=statistics, score=score)


def score(sums: NDArray[np.float64]) -> float:
    """Return the macro-F1 from the summed statistics, of shape (3 × labels,)."""
    hits, answered, expected = sums.reshape(3, -1)
    total = answered + expected
    f1 = np.divide(2 * hits, total, out=np.full_like(hits, np.nan), where=total > 0)
    return float(np.nanmean(f1))
