# SPDX-License-Identifier: Apache-2.0
"""Requested and used hyperparameters of a run. The contract declares their fields."""

from typing import ClassVar

from finetune_operator.api.meta import CELRule, Model
from finetune_trainer.contract.hyperparameters import (
    MAX_WARMUP_RATIO,
    HyperparameterFields,
    ResolvedHyperparameterFields,
)


class Hyperparameters(HyperparameterFields, Model):
    """Hyperparameters of the run. Preflight chooses absent fields once, by the rules in docs/training.md, and
    records them in status.resolved.hyperparameters."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"!has(self.warmupRatio) || self.warmupRatio <= {MAX_WARMUP_RATIO}",
            f"warmupRatio is a share of the run's steps and at most {MAX_WARMUP_RATIO}: write 0.03 for 3 %",
            "warmupRatio",
        ),
    )


class ResolvedHyperparameters(ResolvedHyperparameterFields, Model):
    """Hyperparameters that the run uses."""
