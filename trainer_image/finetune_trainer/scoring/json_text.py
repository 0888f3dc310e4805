# SPDX-License-Identifier: Apache-2.0
"""JSON in the text of answers: values, and tool calls in any wrapping.

A tool call is an object with a name and arguments. Qwen, Hermes and others write them inside of tags, Llama
and Mistral without, as one object each or as a list. Templates that write calls in another form are
recognized by their own rows: the text of the expected answer has no calls then.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from finetune_trainer import canonical_json

FENCED: Final = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
"""A code block of Markdown."""

Path = tuple[str | int, ...]
"""Names of fields and indexes of elements, from the root."""


def strip_fence(text: str) -> str:
    """Return the inside of a Markdown code block if the whole text is one, otherwise the text."""
    found = FENCED.fullmatch(text.strip())
    return text if found is None else found[1]


def parse_fenced(text: str) -> Any:
    """Parse JSON that may be in a Markdown code block. Raises ValueError."""
    return canonical_json.parse(strip_fence(text))


def has_json(text: str) -> bool:
    """Whether the text is JSON, which may be in a Markdown code block."""
    try:
        parse_fenced(text)
    except ValueError:
        return False
    return True


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The fields and elements without content of their own, and empty objects and lists, with their paths."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, (*path, index))
    else:
        yield path, value


def are_equal_leaves(value: Any, other: Any) -> bool:
    """Whether two leaves are equal in JSON: 1 equals 1.0, but not true."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


ARGUMENTS: Final = ("arguments", "parameters")
"""Names of the field with the arguments."""
DECODER: Final = json.JSONDecoder()


def expected_calls(calls: str | None) -> tuple[str, ...]:
    """The calls of a row, each as canonical JSON of name and arguments, sorted.

    Args:
        calls: `tool_calls` of the row's last message, as JSON.
    """
    return _canonical((call["function"] for call in json.loads(calls)) if calls is not None else ())


def find_calls(text: str) -> tuple[str, ...]:
    """The calls in an answer, in the form of `expected_calls`."""
    return _canonical(_objects(text))


def _objects(text: str) -> Iterator[dict[str, Any]]:
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        yield from _calls_of(value)


def _calls_of(value: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(value, dict):
        return
    function = value.get("function", value)
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        yield function


def _canonical(functions: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    calls = []
    for function in functions:
        arguments = next((function[name] for name in ARGUMENTS if name in function), None)
        if isinstance(arguments, str):
            try:
                arguments = canonical_json.parse(arguments)
            except ValueError:
                continue
        if isinstance(arguments, dict):
            call = [function["name"], _integral(arguments)]
            calls.append(json.dumps(call, sort_keys=True, ensure_ascii=False))
    return tuple(sorted(calls))


def _integral(value: Any) -> Any:
    """The value with 1 for 1.0, which are the same number in JSON."""
    if isinstance(value, dict):
        return {name: _integral(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_integral(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
