# SPDX-License-Identifier: Apache-2.0
"""Conversations, as in the chat API of OpenAI, with tools."""

from typing import ClassVar

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.containers.json_records import from_json
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, missing_field_issue
from finetune_trainer.data.formats.conversations import (
    FIELDS,
    order_issues,
    prepend_system,
    read_messages,
    read_tools,
    unsupported_field_issue,
)
from finetune_trainer.data.formats.pairs import mixed_forms_issue
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Issue
from finetune_trainer.rows import Row


class ChatMessagesFormat(Format):
    """`messages`, of which the last is the assistant's, and the `tools` that the assistant may call."""

    name: ClassVar = "ChatMessages"
    title: ClassVar = "chat messages"
    refuses_ratings: ClassVar = True
    named = frozenset({"messages"})
    used: ClassVar = ("system", "tools", "parallel_tool_calls", "functions", "function_call")

    @classmethod
    def match(cls, record: Fields, clues: FormatHints, /) -> Match | None:
        """Matches the field of the messages."""
        if clues.messages not in record:
            return None
        return Match.FIELDS if clues.names.messages is None else Match.NAMED

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.messages = self.names.messages or "messages"
        self._known.update(f"{self.messages}[].{field}" for field in FIELDS)

    def columns(self) -> tuple[str, ...]:
        """The column of the messages."""
        return (self.names.messages or "messages",)

    def row(self, record: Fields) -> Row | Issues:
        """The conversation."""
        if self.messages not in record:
            if (self.names.prompt or "prompt") in record:
                return (mixed_forms_issue("a prompt with its completion", f'"{self.messages}"'),)
            return (missing_field_issue(record, self.messages),)
        found: list[Issue] = [
            unsupported_field_issue(field, "use tools and tool_calls")
            for field in ("functions", "function_call")
            if record.get(field) is not None
        ]
        tools, names = None, frozenset[str]()
        if record.get("tools") is not None:
            tools, names = read_tools("tools", record["tools"], found)
        system = self.system(record, found)
        messages = from_json(record[self.messages])
        turns = read_messages(self.messages, messages, found, names)
        self._note_unused_in_messages(messages)
        # The order is checked only if every message has a role.
        found = found or order_issues(self.messages, turns)
        turns = prepend_system(system, self.messages, turns, found)
        return tuple(found) or Row(tuple(turns), tools=tools)

    def _note_unused_in_messages(self, messages: object) -> None:
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and not message.keys() <= _FIELDS:
                self.note_unused(message, f"{self.messages}[].")


_FIELDS = frozenset(FIELDS)
