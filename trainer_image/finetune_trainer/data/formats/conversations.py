# SPDX-License-Identifier: Apache-2.0
"""Conversations as in the chat API of OpenAI: messages, tools, tool calls, and the order of turns.

Chat templates print the fields in the order in which they get them. So the fields that the API defines have
the order in which the engines render a request, and schemas and arguments have the order of the source.

The checks of the order of turns include which turns are learned.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from finetune_trainer import canonical_json
from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.containers.json_records import from_json, json_type_name
from finetune_trainer.data.row_problems import (
    SURROGATE,
    Code,
    Issue,
    field_names,
    normalize_line_ends,
    show_value,
    text_issue,
    type_name,
)
from finetune_trainer.rows import Message, Role

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
                f"is {show_value(name)}, which is not one of the row's tools",
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
        found.append(_issue(f"{path}.type", f"is {show_value(kind)}", "function", "remove the row"))
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
        content = canonical_json.encode_in_order(value)
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


ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
FIELDS: Final = ("role", "content", "weight", "train", "tool_calls", "tool_call_id", "name", "function_call")
"""Fields of a message that are read or rejected."""


def read_messages(
    path: str, messages: Any, found: list[Issue], tools: frozenset[str] | None = frozenset()
) -> list[Message]:
    """The valid turns; issues are appended to `found`.

    `messages` may also be the JSON of a list, as in the cells of a table.
    `tools` are the names that may be called: empty means all; None means no calls and no tool turns.
    """
    messages = from_json(messages)
    if not isinstance(messages, list) or not messages:
        state = "an empty list" if messages == [] else json_type_name(messages)
        found.append(
            Issue(
                Code.FIELD_EMPTY if messages == [] else Code.FIELD_TYPE,
                f"{path} is {state}",
                "a list of messages",
                "give the turns as a list",
                column=path,
            )
        )
        return []
    turns = (_message(f"{path}[{index}]", message, found, tools) for index, message in enumerate(messages))
    return [turn for turn in turns if turn is not None]


def read_system(record: Fields, found: list[Issue]) -> str:
    """The system text beside a row's turns, as in Anthropic's API; "" if it is missing, null or empty."""
    value = record.get("system")
    is_absent = value is None or value == [] or (isinstance(value, str) and not value.strip())
    return "" if is_absent else _text("system", value, found)


def prepend_system(system: str, path: str, turns: list[Message], found: list[Issue]) -> list[Message]:
    """The turns after the row's system text, if it has one; an issue if they begin with another one."""
    if not system or not turns or turns[0] == Message("system", system):
        return turns
    if turns[0].role == "system":
        found.append(
            Issue(
                Code.TURN_ORDER,
                f"{path}[0] is a system message, and the row also has system",
                "one system message",
                "remove one",
                column="system",
            )
        )
    return [Message("system", system), *turns]


def unsupported_field_issue(path: str, fix: str = "remove it") -> Issue:
    """The issue of an unsupported field that would change what is learned, so it must not be ignored."""
    name = path.rsplit(".", 1)[-1]
    return Issue(Code.UNSUPPORTED, f"{path} is not supported", f"rows without {name}", fix, column=path)


def _message(path: str, message: Any, found: list[Issue], tools: frozenset[str] | None) -> Message | None:
    if not isinstance(message, dict):
        found.append(
            Issue(
                Code.FIELD_TYPE,
                f"{path} is {type_name(message)}",
                "an object with role and content",
                "correct it",
                column=path,
            )
        )
        return None
    before = len(found)
    if message.get("function_call") is not None:
        found.append(unsupported_field_issue(f"{path}.function_call", "use tools and tool_calls"))
    role = _role(path, message, found, tools)
    calls = _calls(path, message, role, found, tools)
    content = _content(path, message, found, may_be_empty=calls is not None)
    learned = _learned(path, message, role, found)
    identity = _tool_field(path, message, "tool_call_id", role, found)
    name = _tool_field(path, message, "name", role, found)
    if role is None or len(found) > before:
        return None
    return Message(role, content, learned, calls, identity, name)


def _role(
    path: str, message: dict[str, Any], found: list[Issue], tools: frozenset[str] | None
) -> Role | None:
    value = message.get("role")
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is not None and (role != "tool" or tools is not None):
        return role
    if value == "function":
        found.append(unsupported_field_issue(f"{path}.role function", "use tools and tool_calls"))
        return None
    found.append(
        Issue(
            Code.ROLE,
            f"{path}.role is {'missing' if 'role' not in message else show_value(value)}",
            "system, user, assistant or tool" if tools is not None else "system, user or assistant",
            "correct the role",
            column=f"{path}.role",
        )
    )
    return None


def _calls(
    path: str, message: dict[str, Any], role: Role | None, found: list[Issue], tools: frozenset[str] | None
) -> str | None:
    calls = message.get("tool_calls")
    if is_blank(calls) or calls == []:
        return None
    path = f"{path}.tool_calls"
    if tools is None:
        found.append(unsupported_field_issue(path))
        return None
    if role not in ("assistant", None):
        found.append(
            Issue(
                Code.TOOL_CALL,
                f"{path} is in a turn of {role}",
                "tool_calls of the assistant only",
                "remove it, or correct the role",
                column=path,
            )
        )
        return None
    return read_calls(path, calls, tools, found)


def _content(path: str, message: dict[str, Any], found: list[Issue], *, may_be_empty: bool) -> str:
    path = f"{path}.content"
    content: Any = message.get("content")
    if may_be_empty and (content is None or content == ""):
        return ""
    if "content" not in message:
        found.append(Issue(Code.FIELD_MISSING, f"{path} is missing", "text", "add the content", column=path))
        return ""
    return _text(path, content, found)


def _text(path: str, content: Any, found: list[Issue]) -> str:
    """A text, or parts of text; "" if it is invalid."""
    if isinstance(content, list):
        joined = _joined(path, content, found)
        if joined is None:
            return ""
        content = joined
    if issue := text_issue(path, content):
        found.append(issue)
        return ""
    return normalize_line_ends(content)


def _joined(path: str, parts: list[Any], found: list[Issue]) -> str | None:
    """The joined text of content parts, all of which must be texts."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get("text") if isinstance(part, dict) else None
        if kind == "text" and isinstance(value, str):
            texts.append(value)
            continue
        state = f"of the type {show_value(kind)}" if kind not in (None, "text") else "not a text part"
        found.append(
            Issue(
                Code.UNSUPPORTED,
                f"{path}[{index}] is {state}",
                'parts of text only, {"type": "text", "text": …}',
                "write it as text, or remove the row",
                column=f"{path}[{index}]",
            )
        )
        return None
    return "".join(texts)


def _learned(path: str, message: dict[str, Any], role: Role | None, found: list[Issue]) -> bool:
    """Whether a turn is learned, by OpenAI's `weight` and by Axolotl's `train`."""
    weight, train = message.get("weight"), message.get("train")
    if weight is None and train is None:
        return True
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        found.append(_learning_issue(f"{path}.weight", f"is {show_value(weight)}", "0 or 1", "correct it"))
    elif weight is not None and role not in ("assistant", None):
        what, expected = f"is in a turn of {role}", "weight in the assistant's turns only"
        found.append(_learning_issue(f"{path}.weight", what, expected, "remove it"))
    if train not in (None, True, False):
        found.append(
            _learning_issue(f"{path}.train", f"is {show_value(train)}", "true or false", "correct it")
        )
    elif train and role not in ("assistant", None):
        what, expected = f"is true in a turn of {role}", "true in the assistant's turns only"
        found.append(_learning_issue(f"{path}.train", what, expected, "set it to false"))
    elif None not in (weight, train) and weight != train:
        found.append(_learning_issue(f"{path}.train", "contradicts weight", "one of them", "remove one"))
    return bool(role != "assistant" or (weight != 0 and train in (None, True)))


def _learning_issue(path: str, what: str, expected: str, fix: str) -> Issue:
    return Issue(Code.FIELD_VALUE, f"{path} {what}", expected, fix, column=path)


def _tool_field(
    path: str, message: dict[str, Any], field: str, role: Role | None, found: list[Issue]
) -> str | None:
    """A text field of tool turns; in other turns it is ignored, because it is not learned."""
    value = message.get(field)
    if value is None or role != "tool":
        return None
    if issue := text_issue(f"{path}.{field}", value):
        found.append(issue)
        return None
    return normalize_line_ends(value)


AS_WRITTEN: Final[Mapping[Role, str]] = {role: role for role in ("system", "user", "assistant", "tool")}


def order_issues(
    path: str,
    turns: Sequence[Message],
    role_names: Mapping[Role, str] = AS_WRITTEN,
    path_of: Callable[[int], str] | None = None,
) -> list[Issue]:
    """Issues in the order of valid turns; `role_names` are the names of the roles in the file.

    `path_of` gives the path of a turn if the turns are not one list.
    """
    path_of = path_of or (lambda index: f"{path}[{index}]")
    if not any(turn.role == "assistant" for turn in turns):
        return [
            Issue(
                Code.NOTHING_TO_LEARN,
                f"{path} has no assistant turn",
                "an answer to learn",
                "add the assistant's answer",
                column=path,
            )
        ]
    allowed: tuple[Role, ...] = ("user",)
    for index, turn in enumerate(turns):
        if turn.role == "system" and index == 0:
            continue
        if turn.role not in allowed:
            return [_order_issue(path_of(index), turn, allowed, role_names)]
        allowed = _after(turn)
    if turns[-1].role != "assistant":
        return [
            Issue(
                Code.TURN_ORDER,
                f"{path} ends with {role_names[turns[-1].role]}",
                "the assistant's turn last",
                "add the answer",
                column=path,
            )
        ]
    return _answer_issues(turns, path_of) + _learning_issues(path, turns)


def _after(turn: Message) -> tuple[Role, ...]:
    if turn.role == "user":
        return ("assistant",)
    if turn.role == "tool":
        return ("assistant", "tool")
    return ("user",) if turn.tool_calls is None else ("tool",)


def _order_issue(
    path: str, turn: Message, allowed: tuple[Role, ...], role_names: Mapping[Role, str]
) -> Issue:
    if turn.role == "system":
        return Issue(
            Code.TURN_ORDER,
            f"{path} is a system message",
            "system first only",
            "move or remove it",
            column=path,
        )
    if turn.role == "tool":
        return Issue(
            Code.TOOL_CALL,
            f"{path} is from tool, but the turn before it makes no tool call",
            "tool turns only after an assistant turn with tool_calls",
            "add the tool_calls, or remove it",
            column=path,
        )
    if "tool" in allowed and "assistant" not in allowed:
        return Issue(
            Code.TOOL_CALL,
            f"{path} is from {role_names[turn.role]}",
            "tool: the response to the tool_calls before it",
            "add the tool turn",
            column=path,
        )
    user, assistant = role_names["user"], role_names["assistant"]
    return Issue(
        Code.TURN_ORDER,
        f"{path} is from {role_names[turn.role]}",
        f"{role_names[allowed[0]]}: {user} and {assistant} take turns",
        "merge or reorder the turns",
        column=path,
    )


def _answer_issues(turns: Sequence[Message], path_of: Callable[[int], str]) -> list[Issue]:
    """Issues of tool turns that respond to a call that was not made."""
    found = []
    identities: set[str] = set()
    for index, turn in enumerate(turns):
        if turn.tool_calls is not None:
            identities = {call["id"] for call in json.loads(turn.tool_calls) if "id" in call}
        elif turn.tool_call_id is not None and turn.tool_call_id not in identities:
            column = f"{path_of(index)}.tool_call_id"
            found.append(
                Issue(
                    Code.TOOL_CALL,
                    f"{column} is {show_value(turn.tool_call_id)}, which no call before it has",
                    "the id of one of the tool_calls before it",
                    "correct the id",
                    column=column,
                )
            )
    return found


def _learning_issues(path: str, turns: Sequence[Message]) -> list[Issue]:
    if turns[-1].learned:
        return []
    if any(turn.learned for turn in turns if turn.role == "assistant"):
        what = f"{path} ends with a turn of weight 0"
        expected = "weight 1 for the last turn, which evaluation uses"
        fix = "end the conversation with the last turn of weight 1"
    else:
        what = f"{path} has no assistant turn of weight 1"
        expected, fix = "an answer to learn", "give the last turn weight 1, or remove the row"
    return [Issue(Code.NOTHING_TO_LEARN, what, expected, fix, column=path)]
