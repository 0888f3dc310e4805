"""Tools and the calls of them, as in the chat API of OpenAI."""

import json
from functools import lru_cache
from typing import Any, Final

from finetune_trainer import canonical
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import SURROGATE, field_names, shown, text_issue, type_name

TOOL: Final = '{"type": "function", "function": {"name": …}}'
CALL: Final = '{"type": "function", "function": {"name": …, "arguments": …}}'


def read_tools(place: str, tools: Any, found: list[Issue]) -> tuple[str | None, frozenset[str]]:
    """A row's tools as canonical JSON, and their names; None for an empty list."""
    if not isinstance(tools, list):
        found.append(_issue(place, f"is {type_name(tools)}", "a list of tools", "give the tools as a list"))
        return None, frozenset()
    names = set()
    before = len(found)
    for index, tool in enumerate(tools):
        function = _function(f"{place}[{index}]", tool, TOOL, found)
        if function is not None:
            names.add(function["name"])
    if len(found) > before or not tools:
        return None, frozenset(names)
    return _canonical(place, tools, found), frozenset(names)


def read_calls(place: str, calls: Any, tools: frozenset[str], found: list[Issue]) -> str | None:
    """A turn's calls as canonical JSON, their arguments as objects; None for an empty list.

    `tools` are the names that may be called; none: all.
    """
    if not isinstance(calls, list):
        found.append(_issue(place, f"is {type_name(calls)}", "a list of calls", "give the calls as a list"))
        return None
    before = len(found)
    kept = [_call(f"{place}[{index}]", call, tools, found) for index, call in enumerate(calls)]
    return _canonical(place, kept, found) if kept and len(found) == before else None


def _call(place: str, call: Any, tools: frozenset[str], found: list[Issue]) -> dict[str, Any]:
    function = _function(place, call, CALL, found)
    if function is None:
        return {}
    name = function["name"]
    if tools and name not in tools:
        found.append(
            _issue(
                f"{place}.function.name",
                f"is {shown(name)}, which is none of the row's tools",
                f"one of {_listed(tools)}",
                "add the tool, or correct the name",
            )
        )
    arguments = _arguments(f"{place}.function.arguments", function.get("arguments"), found)
    kept: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    identity = call.get("id")
    if identity is not None:
        if issue := text_issue(f"{place}.id", identity):
            found.append(issue)
        kept["id"] = identity
    return kept


def _arguments(place: str, arguments: Any, found: list[Issue]) -> Any:
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            found.append(_issue(place, "is not valid JSON", "an object", "correct the JSON"))
            return None
    if not isinstance(value, dict):
        found.append(
            _issue(place, f"is {type_name(value)}", "an object, or its JSON", "write it as an object")
        )
    return value


def _function(place: str, value: Any, shape: str, found: list[Issue]) -> dict[str, Any] | None:
    """The function of a tool or of a call, which has a name."""
    if not isinstance(value, dict):
        found.append(_issue(place, f"is {type_name(value)}", shape, "correct it"))
        return None
    kind = value.get("type", "function")
    if kind != "function":
        found.append(_issue(f"{place}.type", f"is {shown(kind)}", "function", "remove the row"))
        return None
    function = value.get("function")
    if not isinstance(function, dict):
        state = "missing" if function is None else type_name(function)
        found.append(_issue(f"{place}.function", f"is {state}", shape, "write it so"))
        return None
    if "name" not in function:
        found.append(_issue(f"{place}.function.name", "is missing", "text", "add the name"))
        return None
    if issue := text_issue(f"{place}.function.name", function["name"]):
        found.append(issue)
        return None
    return function


@lru_cache(maxsize=1)
def _listed(tools: frozenset[str]) -> str:
    """The names of one row's tools, which each of its wrong calls is told."""
    return field_names(sorted(tools), "tools")


def _canonical(place: str, value: Any, found: list[Issue]) -> str | None:
    try:
        content = canonical.text(value)
    except (ValueError, TypeError, RecursionError):
        found.append(
            _issue(
                place,
                "cannot be written as JSON",
                "texts, finite numbers, lists and objects",
                "remove NaN, infinities, dates and deep nesting",
            )
        )
        return None
    if not content.isascii() and SURROGATE.search(content):
        found.append(
            Issue(
                Code.BROKEN_CHARACTER,
                f"{place} has half of a character",
                "whole characters",
                "export the row again as UTF-8, without cutting texts by bytes",
                column=place,
            )
        )
    return content


def _issue(place: str, what: str, expected: str, fix: str) -> Issue:
    return Issue(Code.TOOL_CALL, f"{place} {what}", expected, fix, column=place)
