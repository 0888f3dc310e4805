# SPDX-License-Identifier: Apache-2.0
"""Training methods by one word, for tests that compare methods."""

from collections.abc import Iterable
from typing import Any, Final

import pytest

from finetune_trainer.contract.method import (
    DEFAULT_OBJECTIVE,
    DEFAULT_TYPE,
    METHODS,
    TYPES,
    Method,
    RequestedMethod,
)


def name_of(method: Method) -> str:
    """The word for a method: its type with the default objective, or another objective.

    The label, for example `DPO with QLoRA`, where neither is the default.
    """
    if method.objective != DEFAULT_OBJECTIVE and method.type == DEFAULT_TYPE:
        return method.objective
    return method.label


NAMES: Final = tuple(name_of(Method(objective=objective, type=type_)) for objective, type_ in METHODS)
"""The methods of the trainer."""


def method_of(name: str, **settings: Any) -> Method:
    """The method of this name."""
    objective, _, type_ = name.partition(" with ")
    named = {"type": name} if name in TYPES else {"objective": objective, "type": type_ or DEFAULT_TYPE}
    return Method.model_validate({**named, **settings})


def requested(method: Method) -> RequestedMethod:
    """The request of a user for the settings that were given to the method."""
    return RequestedMethod.model_validate(method.model_dump(exclude_unset=True))


def sampled(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test: these cases, of which `make test` runs the quick ones and `make test-full` all.

    Raises:
        ValueError: a quick case is none of the cases.
    """
    every = list(cases)
    if unknown := [each for each in quick if each not in every]:
        raise ValueError(f"{unknown} are not among {every}")
    return [pytest.param(each, marks=() if each in quick else pytest.mark.full) for each in every]
