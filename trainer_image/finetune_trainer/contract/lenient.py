# SPDX-License-Identifier: Apache-2.0
"""Read what a newer release wrote: treat its enum values, and values beyond today's bounds, as data.

Only JSON types are checked. A field or value unknown to this release never makes an object unreadable.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import SchemaValidator

BOUNDS: Final = frozenset({"max_length", "min_length", "pattern", "ge", "gt", "le", "lt", "multiple_of"})
OPAQUE: Final = frozenset({"cls", "config", "metadata", "serialization", "default", "default_factory"})
"""Parts of a core schema that contain no schemas."""


@cache
def lenient_validator(model: type[BaseModel]) -> SchemaValidator:
    """A validator that creates instances of the model without checking enum values and bounds.

    It raises ValidationError for wrong JSON types and for missing fields. The caller's `extra` decides about
    unknown fields.
    """
    # The prebuilt validators of the model's parts are as strict as the model.
    return SchemaValidator(_relaxed(model.__pydantic_core_schema__), _use_prebuilt=False)


def without_bounds(schema: Any) -> Any:
    """The core schema without its bounds."""
    return _mapped(schema, lambda literal: literal)


def _relaxed(schema: Any) -> Any:
    """The core schema without bounds, in which a literal accepts any scalar of its type."""
    return _mapped(
        schema,
        lambda literal: {
            "type": "str" if all(isinstance(each, str) for each in literal["expected"]) else "any"
        },
    )


def _mapped(schema: Any, literal: Callable[[dict[str, Any]], Any]) -> Any:
    """The core schema without bounds, with each literal replaced by `literal(schema)`."""
    if isinstance(schema, list):
        return [_mapped(item, literal) for item in schema]
    if isinstance(schema, tuple):
        return tuple(_mapped(item, literal) for item in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "literal":
        return literal(schema)
    return {key: _part(key, value, literal) for key, value in schema.items() if key not in BOUNDS}


def _part(key: str, value: Any, literal: Callable[[dict[str, Any]], Any]) -> Any:
    if key in OPAQUE:
        return value
    if key == "fields" and isinstance(value, dict):
        # Names of fields, one of which may be that of a bound.
        return {name: _mapped(field, literal) for name, field in value.items()}
    return _mapped(value, literal)
