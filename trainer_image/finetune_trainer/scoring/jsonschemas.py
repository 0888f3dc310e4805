"""Validation of answers by a JSON Schema. Nothing is read from the network."""

from collections.abc import Iterator
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from finetune_trainer import canonical


class JSONSchema:
    """A JSON Schema. Without `$schema`, it is of draft 2020-12."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for text that is not a JSON Schema, and for one that refers to others."""
        schema = canonical.parse(text)
        if not isinstance(schema, dict):
            raise ValueError("a JSON Schema is an object")  # noqa: TRY004
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"{error.json_path}: {error.message}") from error
        # An explicit registry: the default one reads unknown addresses from the network.
        registry: Registry[Any] = Registry()
        self._validator: Validator = kind(schema, registry=registry)
        resolver = registry.resolver_with_root(DRAFT202012.create_resource(schema))
        for reference in _references(schema):
            try:
                resolver.lookup(reference)
            except Unresolvable as error:
                raise ValueError(f"{reference} is not in the schema, and others are not read") from error

    def accepts(self, value: Any) -> bool:
        """Whether a value is valid."""
        try:
            return self._validator.is_valid(value)
        except RecursionError:
            return False


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in {"$ref", "$dynamicRef"} and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)
