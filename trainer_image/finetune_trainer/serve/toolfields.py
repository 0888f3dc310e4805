# SPDX-License-Identifier: Apache-2.0
"""Fields of a chat request about tools, as in the OpenAI API."""

import json
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from finetune_trainer.serve.answerforms import StrictFields


class DeclaredFunction(StrictFields):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None
    """SDKs send it. The template gets it as from vLLM. Arguments are not restricted to the schema."""


class DeclaredTool(StrictFields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: DeclaredFunction

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        return self.model_dump(exclude_none=True)


class EarlierFunction(StrictFields):
    """The function of an earlier call."""

    name: str
    arguments: str
    """A JSON object."""

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, arguments: str) -> str:
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PydanticCustomError("arguments", "Expected a JSON object as text")
        return arguments


class EarlierCall(StrictFields):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: EarlierFunction
    index: int | None = None
    """Accepted because chunks of a stream have it."""

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates read it: with arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}
