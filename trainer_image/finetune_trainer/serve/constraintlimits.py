# SPDX-License-Identifier: Apache-2.0
"""Limits of the JSON Schemas and texts by which clients constrain answers, for both engines.

Their compilers are recursive, follow each reference, and need more than linear time for some inputs. A stack
that overflows ends the process, and all requests in it. A long compilation holds up other requests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.grammarlimits import (
    MAX_ALL_BRANCHES,
    MAX_BRANCHES,
    MAX_NESTING,
    MAX_REPETITIONS,
    branches_of,
    check_grammar,
    repetitions_of,
    too_many_branches,
)

MAX_VALUES: Final = 20_000
"""Objects, lists, texts, numbers and other values at all levels: of a schema, and of all fields of a request
except a prompt of token ids. Large schemas have some hundred.

A walk stops there, so the work for a body depends on this number and not on its size.
"""
MAX_CHARACTERS: Final = 128 * 1024
"""Of one field. The slowest input of this size that was tried, a regular expression, took xgrammar 8 s."""
MAX_PROPERTIES: Final = 500
"""Of one object, or of several whose squares have the same sum: the time grows with the square.

With 500 optional properties xgrammar took 0.7 s for 32,000 tokens and 1.6 s for 128,000; with 2,000, 20 s.
"""
MAX_COUNTED_PROPERTIES: Final = 100
"""Of an object with `minProperties` or `maxProperties`: the time grows with the third power.

With 100 properties xgrammar took 0.7 s for 32,000 tokens, with 200 more than 5 s.
"""
MAX_ITEMS: Final = 100_000
"""Of `minItems` and `maxItems`. llguidance took 12 s for a million, and no memory suffices for 2³¹."""


@dataclass
class _Extent:
    """Extent of a schema, or of a value that contains schemas."""

    nesting: int = 0
    """The most levels through which a compiler can go: those of the JSON, once for each reference."""
    squares: int = 0
    """Sum of the squares of the numbers of properties, which have more weight if an object limits them."""
    expressions: list[str] = field(default_factory=list)
    """Regular expressions."""
    grammars: list[str] = field(default_factory=list)
    """Grammars in structural tags."""
    items: float = 0
    """The largest bound of a number of items."""

    def add_keywords(self, schema: Mapping[str, Any]) -> None:
        """Take the keywords of a schema into account."""
        expressions = (schema.get("pattern"), *_names(schema.get("patternProperties")))
        self.expressions += [each for each in expressions if isinstance(each, str)]
        bounds = (schema.get(name) for name in ("minItems", "maxItems"))
        if isinstance(grammar := schema.get("grammar"), str):
            self.grammars.append(grammar)
        is_counted = schema.get("minProperties") or "maxProperties" in schema
        weight = MAX_PROPERTIES // MAX_COUNTED_PROPERTIES if is_counted else 1
        self.squares += (len(_names(schema.get("properties"))) * weight) ** 2
        self.items = max([self.items, *(each for each in bounds if isinstance(each, int | float))])


def check_schema(schema: object, field: str) -> None:
    """Refuse a schema, or a value that contains schemas or grammars, beyond a limit. Raises RequestError."""
    extent = _extent(schema, field)
    if extent.nesting > MAX_NESTING:
        raise unusable("it has too many references, or is nested too deeply", field)
    if extent.squares > MAX_PROPERTIES**2:
        raise unusable(
            f"it has too many properties: one object may have {MAX_PROPERTIES}, or {MAX_COUNTED_PROPERTIES}"
            " with minProperties or maxProperties, and each of several fewer",
            field,
        )
    if any(repetitions_of(each) > MAX_REPETITIONS for each in extent.expressions):
        raise unusable(f"a part of a pattern has more than {MAX_REPETITIONS} repetitions", field)
    branches = [branches_of(each) for each in extent.expressions]
    if max(branches, default=0) > MAX_BRANCHES:
        raise too_many_branches("a pattern", MAX_BRANCHES, field)
    if sum(branches) > MAX_ALL_BRANCHES:
        raise too_many_branches("the sum of its patterns", MAX_ALL_BRANCHES, field)
    if extent.items > MAX_ITEMS:
        raise unusable(f"minItems or maxItems is more than {MAX_ITEMS}", field)
    for grammar in extent.grammars:
        check_grammar(grammar, field)


def check_text(text: str, field: str) -> None:
    """Refuse a text that is too long. Raises RequestError."""
    if len(text) > MAX_CHARACTERS:
        raise RequestError.invalid(
            f"{field}: it has more than {MAX_CHARACTERS} characters. Shorten it.", field
        )


def values_of(value: object, field: str) -> Iterator[tuple[object, int]]:
    """Each value in a value of JSON, itself included, with its level from 1.

    A container comes before its values. Raises RequestError, before a container that is beyond MAX_VALUES.
    """
    found, waiting = 1, [(value, 1)]
    while waiting:
        value, level = waiting.pop()
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        found += len(values)
        if found > MAX_VALUES:
            raise too_many_values(field)
        waiting += [(each, level + 1) for each in values]
        yield value, level


def too_many_values(field: str) -> RequestError:
    """The error of a body whose fields up to this one have too many values."""
    return RequestError.invalid(
        f"{field}: this field, or it and those before it, have more than {MAX_VALUES} values. Send fewer.",
        field,
    )


def _extent(schema: object, field: str) -> _Extent:
    """Raises RequestError if it has too many values or characters."""
    extent, depth, references, characters = _Extent(), 0, set[str](), 0
    for value, level in values_of(schema, field):
        depth = max(depth, level)
        if isinstance(value, str | int | float):
            characters += len(str(value))
        if isinstance(value, dict):
            characters += sum(map(len, value))
        if characters > MAX_CHARACTERS:
            raise unusable(f"it has more than {MAX_CHARACTERS} characters", field)
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                references.add(reference)
            extent.add_keywords(value)
    extent.nesting = depth * (len(references) + 1)
    return extent


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def unusable(why: str, field: str) -> RequestError:
    """The error of a request whose schema cannot be used."""
    return RequestError.invalid(
        f"The schema cannot be used: {why}. Simplify it, or remove what is not supported.", field
    )
