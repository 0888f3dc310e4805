# SPDX-License-Identifier: Apache-2.0
"""Tools and tool calls, as in the chat API of OpenAI.

Chat templates print the fields in the order in which they get them. So the fields that the API defines have
the order in which the engines render a request, and schemas and arguments have the order of the source.
"""

from functools import lru_cache
from typing import Any, Final

from finetune_trainer import canonical
from finetune_trainer.data.containers.decoding import from_json, json_type_name
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import SURROGATE, field_names, shown, text_issue, type_name

TOOL: Final = '{"type": "function", "function": {"name": …}}'
CALL: Final = '{"type": "function", "function": {"name": …, "arguments": …}}'
FUNCTION_FIELDS: Final = ("name", "description", "parameters", "strict")
"""Fields of a function in the order of the engines: `serve.toolfields`, and the request model of vLLM."""


def read_tools(path: str, tools: Any, found: list[Issue]) -> tuple[str | None, frozenset[str]]:
    """The tools of a row as JSON (None for an empty list), and their names.

    The list and each tool may also be JSON texts, as in the cells of a table; an empty cell has no tools.
    """
    tools = from_json(tools)
    if is_blank(tools):
        return None, frozenset()
    if not isinstance(tools, list):
        found.append(
            _issue(path, f"is {json_type_name(tools)}", "a list of tools, or its JSON", "correct it")
        )
        return None, frozenset()
    before = len(found)
    kept, names = [], set()
    for index, given in enumerate(tools):
        tool = from_json(given)
        function = _function(f"{path}[{index}]", tool, TOOL, found)
        if function is not None:
            names.add(function["name"])
            kept.append({"type": "function", "function": _in_api_order(function), **_others(tool)})
    if len(found) > before or not tools:
        return None, frozenset(names)
    return _json(path, kept, found), frozenset(names)


def read_calls(path: str, calls: Any, tools: frozenset[str], found: list[Issue]) -> str | None:
    """The calls of a turn as JSON, with arguments as objects; None for an empty list.

    The list, each call and its arguments may also be JSON texts. `tools` are the names that may be called;
    empty means all.
    """
    calls = from_json(calls)
    if is_blank(calls):
        return None
    if not isinstance(calls, list):
        found.append(
            _issue(path, f"is {json_type_name(calls)}", "a list of calls, or its JSON", "correct it")
        )
        return None
    before = len(found)
    kept = [_call(f"{path}[{index}]", from_json(call), tools, found) for index, call in enumerate(calls)]
    return _json(path, kept, found) if kept and len(found) == before else None


def is_blank(value: Any) -> bool:
    """Whether a field is null or an empty cell of a table."""
    return value is None or (isinstance(value, str) and not value.strip())


def _call(path: str, call: Any, tools: frozenset[str], found: list[Issue]) -> dict[str, Any]:
    function = _function(path, call, CALL, found)
    if function is None:
        return {}
    name = function["name"]
    if tools and name not in tools:
        found.append(
            _issue(
                f"{path}.function.name",
                f"is {shown(name)}, which is not one of the row's tools",
                f"one of {_listed(tools)}",
                "add the tool, or correct the name",
            )
        )
    arguments = _arguments(f"{path}.function.arguments", function.get("arguments"), found)
    kept: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    identity = call.get("id")
    if identity is None:
        return kept
    if issue := text_issue(f"{path}.id", identity):
        found.append(issue)
    return {"id": identity, **kept}


def _arguments(path: str, arguments: Any, found: list[Issue]) -> Any:
    value = from_json(arguments)
    if not isinstance(value, dict):
        found.append(_issue(path, f"is {json_type_name(value)}", "an object, or its JSON", "correct it"))
    return value


def _in_api_order(function: dict[str, Any]) -> dict[str, Any]:
    """The function without its empty fields: the built-in engine leaves these out of a request."""
    first = {name: function[name] for name in FUNCTION_FIELDS if function.get(name) is not None}
    return first | {name: value for name, value in function.items() if value is not None}


def _others(tool: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tool.items() if name not in ("type", "function")}


def _function(path: str, value: Any, shape: str, found: list[Issue]) -> dict[str, Any] | None:
    """The function of a tool or call; None if it is invalid."""
    if not isinstance(value, dict):
        found.append(_issue(path, f"is {type_name(value)}", shape, "correct it"))
        return None
    kind = value.get("type", "function")
    if kind != "function":
        found.append(_issue(f"{path}.type", f"is {shown(kind)}", "function", "remove the row"))
        return None
    function = value.get("function")
    if not isinstance(function, dict):
        state = "missing" if function is None else type_name(function)
        found.append(_issue(f"{path}.function", f"is {state}", shape, "write it in this form"))
        return None
    if "name" not in function:
        found.append(_issue(f"{path}.function.name", "is missing", "text", "add the name"))
        return None
    if issue := text_issue(f"{path}.function.name", function["name"]):
        found.append(issue)
        return None
    return function


@lru_cache(maxsize=1)
def _listed(tools: frozenset[str]) -> str:
    """The names of one row's tools; cached, because each wrong call of the row lists them."""
    return field_names(sorted(tools), "tools")


def _json(path: str, value: Any, found: list[Issue]) -> str | None:
    try:
        content = canonical.in_order(value)
    except (ValueError, TypeError, RecursionError):
        found.append(
            _issue(
                path,
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
                f"{path} has an unpaired surrogate",
                "complete characters",
                "export the row again as UTF-8, without truncating texts by bytes",
                column=path,
            )
        )
    return content


def _issue(path: str, what: str, expected: str, fix: str) -> Issue:
    return Issue(Code.TOOL_CALL, f"{path} {what}", expected, fix, column=path)
