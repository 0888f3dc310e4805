# SPDX-License-Identifier: Apache-2.0
"""Judge an object by the schema of its definition, in the order of the API server: unknown fields, defaults,
types and bounds. The rules come after, in `rules`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_client.offline.definitions import API_VERSION, SCHEMAS, Schema
from finetune_client.offline.findings import Finding, Path, Severity, counted, join_field
from finetune_client.offline.regex import is_match

NOT_JUDGED: Final = "status"
"""The API server takes the status from the operator only, and drops the one of a manifest."""
METADATA_FIELDS: Final = frozenset(
    {
        "name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "uid",
        "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields",
        "deletionGracePeriodSeconds", "selfLink",
    }
)  # fmt: skip


def is_ours(value: Any) -> bool:
    """Whether an object is of a kind of the operator."""
    if not isinstance(value, dict) or value.get("apiVersion") != API_VERSION:
        return False
    kind = value.get("kind")
    return isinstance(kind, str) and kind in SCHEMAS


@dataclass(frozen=True, slots=True)
class UnknownField:
    """A field that the schema does not have.

    Attributes:
        siblings: fields that the schema has there.
        value: the value of the field.
    """

    path: Path
    siblings: tuple[str, ...]
    value: Any


def unknown_fields(schema: Schema | None, value: Any, path: Path = ()) -> Iterator[UnknownField]:
    """Fields that the API server refuses as unknown, those of the metadata included."""
    if isinstance(value, list):
        kept = (schema or {}).get("x-kubernetes-preserve-unknown-fields")
        for index, item in enumerate(() if kept else value):
            yield from unknown_fields((schema or {}).get("items"), item, (*path, index))
    elif isinstance(value, dict):
        if path == ("metadata",):
            siblings = tuple(sorted(METADATA_FIELDS))
            yield from (
                UnknownField((*path, name), siblings, child)
                for name, child in value.items()
                if name not in METADATA_FIELDS
            )
            return
        known = (schema or {}).get("properties", {})
        for name, child in value.items():
            below = child_schema(schema or {}, name)
            if below is None and not (schema or {}).get("x-kubernetes-preserve-unknown-fields"):
                yield UnknownField((*path, name), tuple(known), child)
            elif below is not None:
                yield from unknown_fields(below, child, (*path, name))


def child_schema(schema: Schema, name: str) -> Schema | None:
    """The schema of a field of an object, or of a value of a map; None for an unknown field."""
    found = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    return found if isinstance(found, dict) else None


def complete(schema: Schema, value: Any) -> Any:
    """The value as the API server stores it: without nulls and unknown fields, and with defaults."""
    if isinstance(value, list):
        return [complete(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    if schema.get("type") != "object":
        return {}
    given = {
        name: (child, below)
        for name, child in value.items()
        if (below := child_schema(schema, name)) is not None and child is not None
    }
    defaults = {
        name: (below["default"], below)
        for name, below in schema.get("properties", {}).items()
        if "default" in below
    }
    return {name: complete(below, child) for name, (child, below) in {**defaults, **given}.items()}


@dataclass(frozen=True, slots=True)
class SchemaFinding:
    """A value that its schema does not allow.

    Attributes:
        hides_rules: whether the API server evaluates no rule of an object with it.
    """

    finding: Finding
    hides_rules: bool


def check_values(schema: Schema, value: Any, path: Path) -> Iterator[SchemaFinding]:
    """What the schema does not allow in a completed value."""
    problem = _type_problem(schema, value)
    if problem:
        yield _error(path, problem, hides_rules=True)
        return
    if "enum" in schema and value not in schema["enum"]:
        words = ", ".join(str(each) for each in schema["enum"])
        yield _error(path, f"{_shown(value)} is not one of {words}", hides_rules=True)
    if isinstance(value, bool):
        return
    if isinstance(value, str):
        yield from _check_text(schema, value, path)
    elif isinstance(value, int | float):
        yield from _check_number(schema, value, path)
    elif isinstance(value, list):
        yield from _check_list(schema, value, path)
    elif isinstance(value, dict):
        yield from _check_object(schema, value, path)


def _error(path: Path, message: str, *, hides_rules: bool = False) -> SchemaFinding:
    return SchemaFinding(Finding(Severity.ERROR, path, join_field(path), message), hides_rules)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"


def type_name(value: Any) -> str:
    """The name of a value's type in a schema."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return names[type(value)]


_MAX_INTEGER: Final = 2**63


def _type_problem(schema: Schema, value: Any) -> str:
    """What is wrong with the type of a value; empty if nothing is."""
    given = type_name(value)
    if given in {"integer", "number"}:
        given = "integer" if abs(value) < _MAX_INTEGER and value == int(value) else "number"
    if schema.get("x-kubernetes-int-or-string"):
        return (
            "" if given in {"integer", "string"} else f"must be an integer or a string, not {_shown(value)}"
        )
    wanted = schema.get("type", given)
    if given == wanted or (given, wanted) == ("integer", "number"):
        return ""
    message = f"must be of type {wanted}, not {given}: {_shown(value)}"
    if wanted == "string" and given in {"integer", "number", "boolean"}:
        return f'{message}; write it in quotes: "{_shown(value)}"'
    if wanted == "array":
        return f"{message}; write a list, each item after '- '"
    return message


def _check_text(schema: Schema, value: str, path: Path) -> Iterator[SchemaFinding]:
    if len(value) < schema.get("minLength", 0):
        text = "must not be empty" if not value else f"must have at least {schema['minLength']} characters"
        yield _error(path, text)
    if len(value) > schema.get("maxLength", len(value)):
        text = f"must have at most {schema['maxLength']} characters, and has {len(value)}"
        yield _error(path, text, hides_rules=True)
    if "pattern" in schema and not is_match(value, schema["pattern"]):
        yield _error(path, f"{_shown(value)} does not match {schema['pattern']}")
    if schema.get("format") == "date-time" and not is_match(value, _DATE_TIME):
        yield _error(path, f"{_shown(value)} is not a time such as 2030-01-31T12:00:00Z")


_DATE_TIME: Final = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt\s]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?"
    r"([Zz]|[+-]\d{2}:?\d{2})$"
)


def _check_number(schema: Schema, value: float, path: Path) -> Iterator[SchemaFinding]:
    for keyword, sign, word in (("minimum", 1, "at least"), ("maximum", -1, "at most")):
        if keyword not in schema:
            continue
        bound, exclusive = schema[keyword], schema.get(f"exclusive{keyword.capitalize()}", False)
        if (value - bound) * sign < 0 or (exclusive and value == bound):
            limit = f"{'more' if sign > 0 else 'less'} than {bound:g}" if exclusive else f"{word} {bound:,}"
            yield _error(path, f"must be {limit}, not {_shown(value)}")


def _check_list(schema: Schema, value: Sequence[Any], path: Path) -> Iterator[SchemaFinding]:
    if len(value) < schema.get("minItems", 0):
        yield _error(path, f"must have at least {counted(schema['minItems'], 'item')}, and has {len(value)}")
    if len(value) > schema.get("maxItems", len(value)):
        text = f"must have at most {counted(schema['maxItems'], 'item')}, and has {len(value)}"
        yield _error(path, text, hides_rules=True)
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen: list[Any] = []
    repeated: list[Any] = []
    for index, item in enumerate(value):
        yield from check_values(schema.get("items", {}), item, (*path, index))
        if keys and isinstance(item, dict):
            identity = {key: item.get(key) for key in keys}
            if identity in seen and identity not in repeated:
                repeated.append(identity)
                text = f"the list has another item with {_shown(identity)}: keep one of them"
                yield _error((*path, index), text)
            seen.append(identity)


def _check_object(schema: Schema, value: Mapping[str, Any], path: Path) -> Iterator[SchemaFinding]:
    if len(value) > schema.get("maxProperties", len(value)):
        text = f"must have at most {schema['maxProperties']:,} entries, and has {len(value):,}"
        yield _error(path, text, hides_rules=True)
    for name in schema.get("required", ()):
        if name not in value:
            yield _error((*path, name), "is required", hides_rules=True)
    for name, child in value.items():
        below = child_schema(schema, name)
        if below is not None and not (path == () and name in {"metadata", NOT_JUDGED}):
            yield from check_values(below, child, (*path, name))
