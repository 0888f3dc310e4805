"""Reading what a newer release wrote: its enum values, and values beyond today's bounds, are data.

Only JSON types are checked. What an object has more than this release knows is never a reason not to read it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import SchemaValidator

BOUNDS: Final = frozenset({"max_length", "min_length", "pattern", "ge", "gt", "le", "lt", "multiple_of"})
OPAQUE: Final = frozenset({"cls", "config", "metadata", "serialization", "default", "default_factory"})
"""Parts of a core schema that hold no schemas."""


@cache
def lenient_validator(model: type[BaseModel]) -> SchemaValidator:
    """Makes instances of the model; raises ValidationError for other JSON types, and for missing fields.

    Whether unknown fields are refused is the caller's `extra`.
    """
    # The parts of the model have validators of their own, which are as strict as the model.
    return SchemaValidator(_relaxed(model.__pydantic_core_schema__), _use_prebuilt=False)


def without_bounds(schema: Any) -> Any:
    """A core schema that takes values beyond its bounds."""
    return _mapped(schema, lambda literal: literal)


def _relaxed(schema: Any) -> Any:
    """A core schema without bounds, in which a literal is any scalar of its types, and nothing is refused."""
    return _mapped(
        schema,
        lambda literal: {
            "type": "str" if all(isinstance(each, str) for each in literal["expected"]) else "any"
        },
    )


def _mapped(schema: Any, literal: Callable[[dict[str, Any]], Any]) -> Any:
    """A core schema without bounds, and with another one for each literal."""
    if isinstance(schema, list):
        return [_mapped(item, literal) for item in schema]
    if isinstance(schema, tuple):
        return tuple(_mapped(item, literal) for item in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "literal":
        return literal(schema)
    return {
        key: value if key in OPAQUE else _mapped(value, literal)
        for key, value in schema.items()
        if key not in BOUNDS
    }
