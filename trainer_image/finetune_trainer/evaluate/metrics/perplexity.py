# SPDX-License-Identifier: Apache-2.0
"""Perplexity of the correct answers: exp of their loss."""

import math

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.evaluate.measure import MeasuredRow
from finetune_trainer.evaluate.measured_model import MeasuredBatch
from finetune_trainer.evaluate.metrics import loss


def values(batch: MeasuredBatch) -> list[float]:
    """Return the perplexity of each correct answer; infinity if it is too large for a number."""
    return [_exp(nats) for nats in loss.values(batch)]


def statistics(row: MeasuredRow) -> tuple[float, float]:
    """Return the loss of the correct answer in nats, and its number of tokens."""
    return math.log(row.value) * row.weight, row.weight


def score(sums: NDArray[np.float64]) -> float:
    """Return the perplexity of all tokens together."""
    return _exp(float(sums[0] / sums[1]))


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
