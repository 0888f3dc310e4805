"""Lists of messages, as in the chat API of OpenAI."""

from collections.abc import Mapping
from typing import Any, Final

from finetune_trainer.data.formats.tools import read_calls
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
FIELDS: Final = ("role", "content", "weight", "tool_calls", "tool_call_id", "name", "function_call")
"""Of a message; they are read or refused."""


def read_messages(
    place: str, messages: Any, found: list[Issue], tools: frozenset[str] | None = frozenset()
) -> list[Message]:
    """The turns, as far as they are valid; what is wrong goes to `found`.

    `tools` are the names that may be called: none, all; None, no calls and no turns of tools.
    """
    if not isinstance(messages, list) or not messages:
        state = "an empty list" if messages == [] else type_name(messages)
        found.append(
            Issue(
                Code.FIELD_EMPTY if messages == [] else Code.FIELD_TYPE,
                f"{place} is {state}",
                "a list of messages",
                "give the turns as a list",
                column=place,
            )
        )
        return []
    turns = (_message(f"{place}[{index}]", message, found, tools) for index, message in enumerate(messages))
    return [turn for turn in turns if turn is not None]


def unsupported(place: str, fix: str = "remove it") -> Issue:
    """The issue of a field that would change what is learned: leaving it out in silence would be wrong."""
    name = place.rsplit(".", 1)[-1]
    return Issue(Code.UNSUPPORTED, f"{place} is not supported", f"rows without {name}", fix, column=place)


def _message(place: str, message: Any, found: list[Issue], tools: frozenset[str] | None) -> Message | None:
    if not isinstance(message, dict):
        found.append(
            Issue(
                Code.FIELD_TYPE,
                f"{place} is {type_name(message)}",
                "an object with role and content",
                "correct it",
                column=place,
            )
        )
        return None
    before = len(found)
    if message.get("function_call") is not None:
        found.append(unsupported(f"{place}.function_call", "use tools and tool_calls"))
    role = _role(place, message, found, tools)
    calls = _calls(place, message, role, found, tools)
    content = _content(place, message, found, may_be_empty=calls is not None)
    learned = _learned(place, message, role, found)
    identity = _tool_field(place, message, "tool_call_id", role, found)
    name = _tool_field(place, message, "name", role, found)
    if role is None or len(found) > before:
        return None
    return Message(role, content, learned, calls, identity, name)


def _role(
    place: str, message: dict[str, Any], found: list[Issue], tools: frozenset[str] | None
) -> Role | None:
    value = message.get("role")
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is not None and (role != "tool" or tools is not None):
        return role
    if value == "function":
        found.append(unsupported(f"{place}.role function", "use tools and tool_calls"))
        return None
    found.append(
        Issue(
            Code.ROLE,
            f"{place}.role is {'missing' if 'role' not in message else shown(value)}",
            "system, user, assistant or tool" if tools is not None else "system, user or assistant",
            "correct the role",
            column=f"{place}.role",
        )
    )
    return None


def _calls(
    place: str, message: dict[str, Any], role: Role | None, found: list[Issue], tools: frozenset[str] | None
) -> str | None:
    calls = message.get("tool_calls")
    if calls is None or calls == []:
        return None
    place = f"{place}.tool_calls"
    if tools is None:
        found.append(unsupported(place))
        return None
    if role not in ("assistant", None):
        found.append(
            Issue(
                Code.TOOL_CALL,
                f"{place} is in a turn of {role}",
                "tool_calls of the assistant only",
                "remove it, or correct the role",
                column=place,
            )
        )
        return None
    return read_calls(place, calls, tools, found)


def _content(place: str, message: dict[str, Any], found: list[Issue], *, may_be_empty: bool) -> str:
    place = f"{place}.content"
    content: Any = message.get("content")
    if may_be_empty and (content is None or content == ""):
        return ""
    if "content" not in message:
        found.append(
            Issue(Code.FIELD_MISSING, f"{place} is missing", "text", "add the content", column=place)
        )
        return ""
    if isinstance(content, list):
        joined = _joined(place, content, found)
        if joined is None:
            return ""
        content = joined
    if issue := text_issue(place, content):
        found.append(issue)
        return ""
    return normal_line_ends(content)


def _joined(place: str, parts: list[Any], found: list[Issue]) -> str | None:
    """The text of parts, of which each must be a text."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get("text") if isinstance(part, dict) else None
        if kind == "text" and isinstance(value, str):
            texts.append(value)
            continue
        state = f"of the type {shown(kind)}" if kind not in (None, "text") else "no text part"
        found.append(
            Issue(
                Code.UNSUPPORTED,
                f"{place}[{index}] is {state}",
                'parts of text only, {"type": "text", "text": …}',
                "say it in text, or remove the row",
                column=f"{place}[{index}]",
            )
        )
        return None
    return "".join(texts)


def _learned(place: str, message: dict[str, Any], role: Role | None, found: list[Issue]) -> bool:
    weight = message.get("weight")
    if weight is None:
        return True
    place = f"{place}.weight"
    if isinstance(weight, bool) or weight not in (0, 1):
        found.append(
            Issue(Code.FIELD_VALUE, f"{place} is {shown(weight)}", "0 or 1", "correct it", column=place)
        )
    elif role not in ("assistant", None):
        found.append(
            Issue(
                Code.FIELD_VALUE,
                f"{place} is in a turn of {role}",
                "weight in the assistant's turns only",
                "remove it",
                column=place,
            )
        )
    return bool(weight != 0)


def _tool_field(
    place: str, message: dict[str, Any], field: str, role: Role | None, found: list[Issue]
) -> str | None:
    """A text field that only turns of tools have; that of others says nothing that is learned."""
    value = message.get(field)
    if value is None or role != "tool":
        return None
    if issue := text_issue(f"{place}.{field}", value):
        found.append(issue)
        return None
    return normal_line_ends(value)
