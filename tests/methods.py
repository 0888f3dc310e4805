# SPDX-License-Identifier: Apache-2.0
"""Training methods by one word, for tests that compare methods."""

from typing import Any, Final

from finetune_trainer.contract.method import Method, RequestedMethod
from finetune_trainer.contract.methods import DEFAULT_OBJECTIVE, METHODS, TYPES

NAMES: Final = tuple(type_ if objective == DEFAULT_OBJECTIVE else objective for objective, type_ in METHODS)
"""The methods of the trainer: a type with the default objective, or another objective with its type."""


def method_of(name: str, **settings: Any) -> Method:
    """The method of this name."""
    return Method.model_validate({"type" if name in TYPES else "objective": name, **settings})


def requested(method: Method) -> RequestedMethod:
    """The request of a user for the settings that were given to the method."""
    return RequestedMethod.model_validate(method.model_dump(exclude_unset=True))
