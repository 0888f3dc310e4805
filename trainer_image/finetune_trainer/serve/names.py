# SPDX-License-Identifier: Apache-2.0
"""Names of the models that an endpoint serves."""

from typing import Final

from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure

BASE_NAME: Final = "base"


def served_names(config: ServeConfig) -> tuple[str, ...]:
    """Return `base` and the adapters, or the one whole model that is served alone.

    Raises StageFailure (INVALID_CONFIG) for names that conflict.
    """
    names = [model.name for model in config.models]
    for name in names:
        if names.count(name) > 1:
            raise _invalid(f"{name!r} occurs twice: give each model its own name")
    if all(model.type == "Adapter" for model in config.models):
        if BASE_NAME in names:
            raise _invalid(f"{BASE_NAME!r} is the name of the base model: give the model another name")
        return (BASE_NAME, *names)
    if len(names) > 1:
        raise _invalid("a model of type Full replaces the base model: serve it alone")
    return tuple(names)


def _invalid(message: str) -> StageFailure:
    return StageFailure(FailureReason.INVALID_CONFIG, f"models: {message}")
