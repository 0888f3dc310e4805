# SPDX-License-Identifier: Apache-2.0
"""Asynchronous successive halving (Li et al., 2020): which trials continue at a rung.

A trial is judged when it reaches a rung, among the trials that have reached it before, so that no trial waits
for another one.
"""

from collections.abc import Sequence


def continues(loss: float, others: Sequence[float], factor: int) -> bool:
    """Whether a trial is among the best 1/factor of those that have reached a rung, itself included.

    While fewer than `factor` trials have reached it, the best of them continues. This is the rule of Optuna's
    SuccessiveHalvingPruner.

    Args:
        loss: loss of the trial at the rung; lower is better.
        others: losses of the trials that reached the rung before.
        factor: the reduction factor.
    """
    reached = sorted((*others, loss))
    return loss <= reached[max(len(reached) // factor, 1) - 1]


def reached_rungs(rungs: Sequence[float], step: int, total_steps: int) -> int:
    """Number of rungs that a validation at this step reaches.

    Args:
        rungs: shares of the steps, in increasing order.
        step: optimizer step of the validation.
        total_steps: optimizer steps of the whole trial; 0 if they are unknown.
    """
    return sum(step >= share * total_steps for share in rungs) if total_steps else 0
