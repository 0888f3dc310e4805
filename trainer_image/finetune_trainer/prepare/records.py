"""From a record (a JSON object, or a CSV record by column) to a row, or to what is wrong with it."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from finetune_trainer.contract import Columns
from finetune_trainer.prepare.problems import Issue
from finetune_trainer.prepare.split import Group
from finetune_trainer.prepare.text import listed, normal_line_ends, text_issue, type_name
from finetune_trainer.rows import Message, Row

ROLES: Final = ("system", "user", "assistant")
UNSUPPORTED: Final = ("tools", "functions")
UNSUPPORTED_IN_MESSAGE: Final = ("weight", "tool_calls", "tool_call_id", "function_call")
"""Fields that would change what is learned; leaving them out in silence would be wrong."""

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawRow:
    """A valid row before any cleaning, and its group where the division is by groups."""

    row: Row
    group: Group | None = None


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The names in the file."""

    prompt: str
    completion: str
    messages: str
    group: str | None

    @classmethod
    def of(cls, columns: Columns, group_by: str | None) -> "FieldNames":
        """Names as mapped, or the usual ones."""
        return cls(
            prompt=columns.prompt or "prompt",
            completion=columns.completion or "completion",
            messages=columns.messages or "messages",
            group=group_by,
        )


class Records(ABC):
    """Reads the records of one form; names each unknown field once in the log."""

    fields_used: ClassVar[tuple[str, ...]]

    def __init__(self, names: FieldNames) -> None:
        self.names = names
        self._known = {getattr(names, field) for field in self.fields_used} | {names.group}

    def read(self, record: Record) -> RawRow | tuple[Issue, ...]:
        """The row, or all that is wrong with it."""
        self._note_unknown(record)
        row = self._row(record)
        group, issue = self._group(record)
        if isinstance(row, Row) and issue is None:
            return RawRow(row, group)
        issues = () if isinstance(row, Row) else row
        return issues if issue is None else (*issues, issue)

    @abstractmethod
    def _row(self, record: Record) -> Row | tuple[Issue, ...]: ...

    def _group(self, record: Record) -> tuple[Group | None, Issue | None]:
        name = self.names.group
        if name is None:
            return None, None
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            issue = text_issue(name, value)
            return (normal_line_ends(value), None) if issue is None else (None, issue)
        if isinstance(value, int):
            return value, None
        state = "missing" if name not in record else "empty" if value == "" else type_name(value)
        return None, Issue(
            f"{name}, which split.groupBy names, is {state}",
            "text or a whole number",
            f"fill {name} in, or remove split.groupBy",
        )

    def _note_unknown(self, record: Record) -> None:
        unknown = [name for name in record if name not in self._known]
        if unknown:
            self._known.update(unknown)
            logger.warning("fields that are not used: %s", listed(unknown))


class PairRecords(Records):
    """A prompt and its completion."""

    fields_used = ("prompt", "completion")

    def _row(self, record: Record) -> Row | tuple[Issue, ...]:
        names = self.names
        if names.messages in record and names.prompt not in record:
            return (_mixed(f'a chat row, with "{names.messages}"', "prompt and completion"),)
        issues = [_pair_issue(record, name) for name in (names.prompt, names.completion)]
        if found := tuple(issue for issue in issues if issue is not None):
            return found
        return Row.pair(
            normal_line_ends(record[names.prompt]),
            normal_line_ends(record[names.completion]),
        )


class ChatRecords(Records):
    """A list of messages, the last one the assistant's."""

    fields_used = ("messages",)

    def __init__(self, names: FieldNames) -> None:
        super().__init__(names)
        # Refused, so there is no need to say that they are not used.
        self._known.update(UNSUPPORTED)
        self._known.update(f"{names.messages}[].{field}" for field in UNSUPPORTED_IN_MESSAGE)

    def _row(self, record: Record) -> Row | tuple[Issue, ...]:
        name = self.names.messages
        if name not in record:
            if self.names.prompt in record:
                return (_mixed("a prompt with its completion", f'"{name}"'),)
            return (_missing(record, name),)
        messages = record[name]
        if not isinstance(messages, list) or not messages:
            state = "an empty list" if messages == [] else type_name(messages)
            return (Issue(f"{name} is {state}", "a list of messages", "give the turns as a list"),)
        found = [_unsupported(field, field) for field in UNSUPPORTED if field in record]
        for index, message in enumerate(messages):
            found += _message_issues(f"{name}[{index}]", message)
        # The order of roles means nothing before every message has one.
        found = found or _order_issues(name, [message["role"] for message in messages])
        if found:
            return tuple(found)
        return Row(
            tuple(Message(message["role"], normal_line_ends(message["content"])) for message in messages)
        )

    def _note_unknown(self, record: Record) -> None:
        super()._note_unknown(record)
        messages = record.get(self.names.messages)
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and message.keys() - {"role", "content"}:
                self._note_unknown_in_message(message)

    def _note_unknown_in_message(self, message: Record) -> None:
        unknown = [f"{self.names.messages}[].{name}" for name in sorted(message.keys() - {"role", "content"})]
        fresh = [name for name in unknown if name not in self._known]
        if fresh:
            self._known.update(fresh)
            logger.warning("fields that are not used: %s", listed(fresh))


def _pair_issue(record: Record, name: str) -> Issue | None:
    return text_issue(name, record[name]) if name in record else _missing(record, name)


def _missing(record: Record, name: str) -> Issue:
    there = f"it has {listed(list(record))}" if record else "it is an empty object"
    return Issue(
        f'"{name}" is missing ({there})', f'the field "{name}"', "add it, or map another field in columns"
    )


def _mixed(found: str, expected: str) -> Issue:
    return Issue(f"is {found}", f"{expected}, as in the other rows", "keep one form a dataset")


def _unsupported(place: str, field: str) -> Issue:
    return Issue(f"{place} is not supported", f"rows without {field}", "remove it")


def _message_issues(place: str, message: Any) -> list[Issue]:
    if not isinstance(message, dict):
        return [Issue(f"{place} is {type_name(message)}", "an object with role and content", "correct it")]
    found = [_unsupported(f"{place}.{field}", field) for field in UNSUPPORTED_IN_MESSAGE if field in message]
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        state = "missing" if "role" not in message else repr(role)
        found.append(Issue(f"{place}.role is {state}", "system, user or assistant", "correct the role"))
    if "content" not in message:
        found.append(Issue(f"{place}.content is missing", "text", "add the content"))
    elif issue := text_issue(f"{place}.content", message["content"]):
        found.append(issue)
    return found


def _order_issues(name: str, roles: list[str]) -> list[Issue]:
    for index, role in enumerate(roles):
        if role == "system" and index > 0:
            return [Issue(f"{name}[{index}] is a system message", "system first only", "move or remove it")]
    turns = roles[1:] if roles[0] == "system" else roles
    first = len(roles) - len(turns)
    if "assistant" not in turns:
        return [Issue(f"{name} has no assistant turn", "an answer to learn", "add the assistant's answer")]
    for index, role in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if role != expected:
            return [
                Issue(
                    f"{name}[{first + index}] is from {role}",
                    f"{expected}: user and assistant take turns",
                    "join or reorder the turns",
                )
            ]
    if turns[-1] != "assistant":
        return [Issue(f"{name} ends with {turns[-1]}", "the assistant's turn last", "add the answer")]
    return []
