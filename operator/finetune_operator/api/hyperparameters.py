"""Hyperparameters: those that a run asks for, and those that it uses. Their fields are the contract's."""

from finetune_operator.api.meta import Model
from finetune_trainer.contract.hyperparameters import HyperparameterFields, ResolvedHyperparameterFields


class Hyperparameters(HyperparameterFields, Model):
    """What is left out is chosen once by a documented rule and kept in status.resolved."""


class ResolvedHyperparameters(ResolvedHyperparameterFields, Model):
    """The hyperparameters a run really uses."""
