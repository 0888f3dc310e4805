# SPDX-License-Identifier: Apache-2.0
"""Training methods by one word, for tests that compare methods."""

from typing import Any, Final

from finetune_trainer.contract.method import DEFAULT_OBJECTIVE, METHODS, TYPES, Method, RequestedMethod


def name_of(method: Method) -> str:
    """The word for a method: its type with the default objective, or another objective with its type."""
    return method.type if method.objective == DEFAULT_OBJECTIVE else method.objective


NAMES: Final = tuple(name_of(Method(objective=objective, type=type_)) for objective, type_ in METHODS)
"""The methods of the trainer."""


def method_of(name: str, **settings: Any) -> Method:
    """The method of this name."""
    return Method.model_validate({"type" if name in TYPES else "objective": name, **settings})


def requested(method: Method) -> RequestedMethod:
    """The request of a user for the settings that were given to the method."""
    return RequestedMethod.model_validate(method.model_dump(exclude_unset=True))
