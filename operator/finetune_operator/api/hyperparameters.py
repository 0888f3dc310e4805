# SPDX-License-Identifier: Apache-2.0
"""Requested and used hyperparameters of a run. The contract declares their fields."""

from finetune_operator.api.meta import Model
from finetune_trainer.contract.hyperparameters import HyperparameterFields, ResolvedHyperparameterFields


class Hyperparameters(HyperparameterFields, Model):
    """Hyperparameters of the run. Preflight chooses absent fields once, by the rules in docs/training.md, and
    records them in status.resolved.hyperparameters."""


class ResolvedHyperparameters(ResolvedHyperparameterFields, Model):
    """Hyperparameters that the run uses."""
