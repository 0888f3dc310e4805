# SPDX-License-Identifier: Apache-2.0
"""Tool calls in the text of answers: JSON objects with a name and arguments, in any wrapping.

Qwen, Hermes and others write them inside of tags, Llama and Mistral without, as one object each or as a list.
Templates that write calls in another form are recognized by their own rows: the text of the expected answer
has no calls then.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from finetune_trainer import canonical_json

ARGUMENTS: Final = ("arguments", "parameters")
"""Names of the field with the arguments."""
DECODER: Final = json.JSONDecoder()


def expected_calls(calls: str | None) -> tuple[str, ...]:
    """The calls of a row, each as canonical JSON of name and arguments, sorted.

    Args:
        calls: `tool_calls` of the row's last message, as JSON.
    """
    return _canonical((call["function"] for call in json.loads(calls)) if calls is not None else ())


def calls_in(text: str) -> tuple[str, ...]:
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
