# SPDX-License-Identifier: Apache-2.0
"""chrF: F2 of character n-grams (Popović, 2015), by sacrebleu with its defaults, as a fraction.

The score is that of sacrebleu's corpus: the n-grams of all rows are counted together, so a long answer weighs
more than a short one. The value of a row is that of sacrebleu's sentence.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.evaluate.measure import MeasuredRow

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF


def value(answer: str, accepted: Collection[str]) -> float:
    """Return the chrF of an answer and its correct texts, 0 to 1."""
    return float(_chrf().sentence_score(answer, _references(accepted)).score) / 100


def statistics(row: MeasuredRow) -> Sequence[float]:
    """Return the numbers of n-grams: per length those of the answer, of the correct text, and common ones.

    Of several correct texts, the one with the highest chrF counts.
    """
    references = [[text] for text in _references(row.example.accepted)]
    (counts,) = _chrf()._extract_corpus_statistics([row.prediction.text or ""], references)
    return tuple(map(float, counts))


def score(sums: NDArray[np.float64]) -> float:
    """Return the chrF of the corpus from the summed numbers of n-grams, 0 to 1."""
    return float(_chrf()._compute_f_score(sums.tolist())) / 100


def _references(accepted: Collection[str]) -> list[str]:
    return sorted(accepted) or [""]


@cache
def _chrf() -> "CHRF":
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
