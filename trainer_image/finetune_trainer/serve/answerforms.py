# SPDX-License-Identifier: Apache-2.0
"""Forms that a chat request can demand of its answer, as in the OpenAI API."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
"""The schema of JSON mode."""


class StrictFields(BaseModel):
    """A part of a request. Fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NamedSchema(StrictFields):
    """A JSON Schema that the content of the answer matches."""

    name: str = Field(min_length=1, max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """The answer always matches."""


class AnswerForm(StrictFields):
    """`response_format` of a request."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_with_type(self) -> "AnswerForm":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError(
                "json_schema", "json_schema is required with type json_schema, and only allowed with it"
            )
        return self

    @property
    def schema_of_content(self) -> dict[str, Any] | None:
        """The JSON Schema of the content; None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return ANY_OBJECT if self.type == "json_object" else None
