# SPDX-License-Identifier: Apache-2.0
"""Lists of messages, as in the chat API of OpenAI."""

from collections.abc import Mapping
from typing import Any, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.containers.decoding import from_json, json_type_name
from finetune_trainer.data.formats.tools import is_blank, read_calls
from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import normal_line_ends, shown, text_issue, type_name
from finetune_trainer.rows import Message, Role

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


def with_system(system: str, path: str, turns: list[Message], found: list[Issue]) -> list[Message]:
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


def unsupported(path: str, fix: str = "remove it") -> Issue:
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
        found.append(unsupported(f"{path}.function_call", "use tools and tool_calls"))
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
        found.append(unsupported(f"{path}.role function", "use tools and tool_calls"))
        return None
    found.append(
        Issue(
            Code.ROLE,
            f"{path}.role is {'missing' if 'role' not in message else shown(value)}",
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
        found.append(unsupported(path))
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
    return normal_line_ends(content)


def _joined(path: str, parts: list[Any], found: list[Issue]) -> str | None:
    """The joined text of content parts, all of which must be texts."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get("text") if isinstance(part, dict) else None
        if kind == "text" and isinstance(value, str):
            texts.append(value)
            continue
        state = f"of the type {shown(kind)}" if kind not in (None, "text") else "not a text part"
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
        found.append(_learning_issue(f"{path}.weight", f"is {shown(weight)}", "0 or 1", "correct it"))
    elif weight is not None and role not in ("assistant", None):
        what, expected = f"is in a turn of {role}", "weight in the assistant's turns only"
        found.append(_learning_issue(f"{path}.weight", what, expected, "remove it"))
    if train not in (None, True, False):
        found.append(_learning_issue(f"{path}.train", f"is {shown(train)}", "true or false", "correct it"))
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
    return normal_line_ends(value)
