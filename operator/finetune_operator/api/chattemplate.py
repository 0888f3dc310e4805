# SPDX-License-Identifier: Apache-2.0
"""Arguments for the chat template. The values are JSON scalars, which a structural schema cannot express."""

import json
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field, JsonValue

from finetune_trainer.contract.vocabulary import RESERVED_TEMPLATE_ARGUMENTS

MAX_ARGUMENTS: Final = 16
MAX_CHARACTERS: Final = 1024
"""Max length of all arguments as JSON text."""

ChatTemplateKwargs = Annotated[
    dict[str, JsonValue],
    Field(max_length=MAX_ARGUMENTS, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}),
]
"""The API server bounds only their number. `invalid_arguments` checks the rest."""


def invalid_arguments(arguments: Mapping[str, JsonValue], field: str) -> str | None:
    """What is wrong with the arguments in this field; None if they are valid."""
    for name, value in arguments.items():
        if name in RESERVED_TEMPLATE_ARGUMENTS:
            return f"{field}.{name} is set by the trainer itself: create a new FineTuneJob without it"
        if not isinstance(value, str | int | float | bool):
            return (
                f"{field}.{name} must be a string, a number or a boolean, such as enable_thinking: false, not"
                f" {json.dumps(value)[:60]}: create a new FineTuneJob with such a value"
            )
    length = len(json.dumps(arguments, separators=(",", ":")))
    if length > MAX_CHARACTERS:
        return (
            f"{field} has {length} characters as JSON, more than {MAX_CHARACTERS}: create a new FineTuneJob"
            " with fewer or shorter values"
        )
    return None
