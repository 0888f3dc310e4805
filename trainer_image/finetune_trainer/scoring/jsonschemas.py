"""Validation of answers by a JSON Schema. Nothing is read from the network."""

from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, UnknownDialect, specification_with

from finetune_trainer import canonical

REFERENCES = ("$ref", "$dynamicRef")


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
            draft = specification_with(schema["$schema"]) if "$schema" in schema else DRAFT202012
        except SchemaError as error:
            raise ValueError(f"{error.json_path}: {error.message}") from error
        except UnknownDialect as error:
            raise ValueError(f"$schema: {error.uri} is unknown") from error
        # An explicit registry: the default one reads unknown addresses from the network.
        registry: Registry[Any] = Registry()
        resource = draft.create_resource(schema)
        _check_references(resource, registry.resolver_with_root(resource))
        self._validator: Validator = kind(schema, registry=registry)

    def accepts(self, value: Any) -> bool:
        """Whether a value is valid."""
        try:
            return self._validator.is_valid(value)
        except RecursionError:
            return False


def _check_references(schema: Resource[Any], resolver: Any) -> None:
    """Raise ValueError for a reference to something outside of the whole schema."""
    contents = schema.contents if isinstance(schema.contents, dict) else {}
    for reference in (contents[name] for name in REFERENCES if name in contents):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"{reference} is not in the schema, and others are not read") from error
    for part in schema.subresources():
        _check_references(part, resolver.in_subresource(part))
