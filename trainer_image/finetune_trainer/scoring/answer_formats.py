# SPDX-License-Identifier: Apache-2.0
"""Formats that answers must match: a regular expression or a JSON Schema.

RE2 matches all patterns, also those of schemas: its time grows with the text and not exponentially.
jsonschema alone matches patterns with Python's `re`, which can take exponential time for an answer. Nothing
is read from the network.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import re2
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, extend, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, UnknownDialect, specification_with

from finetune_trainer import canonical_json


@cache
def compile_pattern(expression: str) -> Any:
    """Return the compiled expression. Raises ValueError for one that RE2 does not support."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"RE2 does not support it: {reason}") from error


def occurs(expression: str, text: str) -> bool:
    """Whether a part of the text matches, as in a JSON Schema. Raises ValueError as `compile_pattern`."""
    # JSON can have half of a surrogate pair, which UTF-8 cannot.
    return compile_pattern(expression).search(text.encode(errors="replace").decode()) is not None


class AnswerPattern:
    """A regular expression for a whole answer."""

    def __init__(self, expression: str) -> None:
        """Raises ValueError for an expression that RE2 does not support."""
        self._compiled = compile_pattern(expression)

    def matches(self, answer: str) -> bool:
        """Whether the whole answer matches; `.` does not match a line break."""
        return self._compiled.fullmatch(answer) is not None


REFERENCES = ("$ref", "$dynamicRef")


class JSONSchema:
    """A JSON Schema. Without `$schema`, it is of draft 2020-12."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for text that is not a JSON Schema, and for one that refers to others."""
        schema = canonical_json.parse(text)
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
        _check_patterns(resource)
        with_patterns = extend(kind, PATTERN_KEYWORDS)  # type: ignore[no-untyped-call]
        self._validator: Validator = with_patterns(schema, registry=registry)

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


def _check_patterns(schema: Resource[Any]) -> None:
    """Raise ValueError for a pattern that RE2 does not support, or one that only Python's `re` would read."""
    parts = list(_parts(schema))
    for part in parts:
        for pattern in (*part.get("patternProperties", ()), *filter(None, [part.get("pattern")])):
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"pattern {pattern}: {error}") from error
    if any("patternProperties" in part for part in parts) and any(
        "unevaluatedProperties" in part for part in parts
    ):
        raise ValueError("unevaluatedProperties with patternProperties is not supported")


def _parts(schema: Resource[Any]) -> Iterator[dict[str, Any]]:
    """The schema and those within it that are objects."""
    if isinstance(schema.contents, dict):
        yield schema.contents
    for part in schema.subresources():
        yield from _parts(part)


def _pattern(validator: Any, pattern: str, value: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not occurs(pattern, value):
        yield ValidationError(f"does not match {pattern}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, _: Any
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        for pattern, part in patterns.items():
            for name in (name for name in value if occurs(pattern, name)):
                yield from validator.descend(value[name], part, path=name)


def _additional_properties(
    validator: Any, part: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name in value:
            if name not in known and not any(occurs(pattern, name) for pattern in patterns):
                yield from validator.descend(value[name], part, path=name)


PATTERN_KEYWORDS: Final = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
"""The keywords of jsonschema that match patterns, by RE2."""
