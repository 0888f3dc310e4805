# SPDX-License-Identifier: Apache-2.0
"""The constraints of a CRD's schema, with values that satisfy and that violate each."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.crd import Kind, build_crd
from finetune_operator.api.meta import pattern_rule
from tests.integration.api import Object
from tests.integration.rules.requests import without_indexes

Schema = dict[str, Any]
Path = tuple[str | int, ...]

FOREIGN_TYPES: dict[str, Any] = {
    "string": 7,
    "integer": "auto",
    "number": "2e-4",
    "boolean": "yes",
    "object": "a-name",
    "array": "a-name",
}
TEMPLATE = "spec.template.spec"
"""Field with the spec of a run, whose fields and rules are tested with FineTuneJobs."""
STEP = 0.0001
"""Distance of a test value from the bound of a fraction."""


@dataclass(frozen=True)
class Breach:
    """Values for one keyword of a schema.

    Attributes:
        keyword: the keyword.
        refused: a value that violates it.
        accepted: values that just satisfy it. Rules of enclosing objects may refuse them.
        advice: messages of the rule that repeats the pattern, which the violation must show.
        around: messages of the other rules: the field's own, and those of enclosing objects.
    """

    keyword: str
    refused: Any
    accepted: tuple[Any, ...]
    advice: tuple[str, ...]
    around: tuple[str, ...]


@dataclass(frozen=True)
class Demand:
    """One keyword of the schema at one field of a valid object."""

    kind: Kind
    example: Object
    path: Path
    breach: Breach

    def __str__(self) -> str:
        return f"{self.kind.name} {without_indexes(self.field)} {self.breach.keyword}"

    @property
    def field(self) -> str:
        """The path as the API server writes it."""
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return "".join(steps).removeprefix(".")

    def example_with(self, value: Any) -> Object:
        """The example with another value in this field; None removes the field."""
        changed = copy.deepcopy(self.example)
        parent: Any = changed
        for step in self.path[:-1]:
            parent = parent[step]
        if value is None:
            del parent[self.path[-1]]
        else:
            parent[self.path[-1]] = value
        return changed


def spec_schema(kind: Kind) -> Schema:
    """The schema of `spec`."""
    root = root_schema(kind)
    schema: Schema = root["properties"]["spec"]
    return schema


def root_schema(kind: Kind) -> Schema:
    """The schema of the whole object."""
    schema: Schema = build_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every field below `path` with its schema; items of lists and values of maps as `[*]`.

    Those of a template of runs are left out.
    """
    if path == TEMPLATE:
        return
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from fields(schema[key], f"{path}[*]")


def demands(kind: Kind, examples: list[Object]) -> list[Demand]:
    """Every constraint of the schema of `spec` once, with the first example that has the field."""
    found: dict[str, Demand] = {}
    schema = spec_schema(kind)
    for example in examples:
        for path, breach in _at(schema, example["spec"], ("spec",)):
            demand = Demand(kind, example, path, breach)
            found.setdefault(str(demand), demand)
    return list(found.values())


def occurring(schema: Schema, value: Any, path: str) -> Iterator[str]:
    """Paths of `fields` that the value has."""
    yield path
    if isinstance(value, dict):
        for name, child in value.items():
            inner = _inner(schema, name)
            if inner is None:
                continue
            at = f"{path}.{name}" if "properties" in schema else f"{path}[*]"
            yield from occurring(inner, child, at)
    elif isinstance(value, list):
        for child in value:
            yield from occurring(schema["items"], child, f"{path}[*]")


def _inner(schema: Schema, name: str) -> Schema | None:
    """The schema of one value of an object; None for a value of any type."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return None
    found: Schema = schema.get("properties", {}).get(name) or schema["additionalProperties"]
    return found


def _at(
    schema: Schema, value: Any, path: Path, around: tuple[str, ...] = ()
) -> Iterator[tuple[Path, Breach]]:
    rules = schema.get("x-kubernetes-validations", [])
    messages = (*around, *(each["message"] for each in rules))
    for keyword, refused, accepted in _keywords(schema, value):
        advice: tuple[str, ...] = ()
        if keyword == "pattern":
            advice = tuple(
                each["message"] for each in rules if each == pattern_rule(schema["pattern"], each["message"])
            )
        others = tuple(message for message in messages if message not in advice)
        yield path, Breach(keyword, refused, accepted, advice, others)
    for name in schema.get("required", []):
        yield (*path, name), Breach("required", None, (), (), ())
    if isinstance(value, dict):
        for name, child in value.items():
            inner = _inner(schema, name)
            if inner is not None:
                yield from _at(inner, child, (*path, name), messages)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _at(schema["items"], child, (*path, index), messages)


def _keywords(schema: Schema, value: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Each keyword with a value that violates it and values that just satisfy it."""
    if "x-kubernetes-int-or-string" in schema:
        yield "x-kubernetes-int-or-string", True, (value,)
        return
    yield "type", FOREIGN_TYPES[schema["type"]], (value,)
    if "enum" in schema:
        yield "enum", "Nonsense", tuple(schema["enum"])
    if "pattern" in schema:
        yield "pattern", "%" * max(schema.get("minLength", 0), 1), (value,)
    yield from _numbers(schema)
    yield from _sizes(schema, value)


def _numbers(schema: Schema) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    step = 1 if schema["type"] == "integer" else STEP
    for keyword, outwards in (("minimum", -step), ("maximum", step)):
        if keyword in schema:
            bound = schema[keyword]
            exclusive = schema.get(f"exclusive{keyword.capitalize()}", False)
            if exclusive:
                yield keyword, bound, (bound - outwards,)
            else:
                yield keyword, bound + outwards, (bound,)


def _sizes(schema: Schema, value: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    if schema.get("minLength"):
        yield "minLength", value[: schema["minLength"] - 1], ()
    if "maxLength" in schema:
        longest = value + "a" * (schema["maxLength"] - len(value))
        keeps_pattern = re.search(schema.get("pattern", ""), longest)
        yield "maxLength", longest + "a", (longest,) if keeps_pattern else ()
    if schema.get("minItems"):
        yield "minItems", value[: schema["minItems"] - 1], ()
    if "maxItems" in schema:
        items = _repeated(value[0], schema["maxItems"] + 1)
        yield "maxItems", items, (items[:-1],)
    if "maxProperties" in schema:
        entries = {f"key-{number}": "x" for number in range(schema["maxProperties"] + 1)}
        fewer = dict(list(entries.items())[:-1])
        yield "maxProperties", entries, (fewer,)


def _repeated(item: Any, count: int) -> list[Any]:
    """Copies of one item; items with a name get different names."""
    if isinstance(item, dict) and "name" in item:
        return [{**item, "name": f"item-{number}"} for number in range(count)]
    return [item] * count
