# SPDX-License-Identifier: Apache-2.0
"""ShareGPT: conversations of turns with `from` and `value`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.containers.json_records import from_json
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, missing_field_issue
from finetune_trainer.data.formats.conversations import (
    AS_WRITTEN,
    order_issues,
    prepend_system,
    read_messages,
    unsupported_field_issue,
)
from finetune_trainer.data.row_problems import Code, Issue, show_value, type_name
from finetune_trainer.rows import Message, Role, Row

CONVERSATIONS: Final = "conversations"
ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}
TOOL_ROLES: Final = ("function_call", "function_response", "observation", "function", "tool", "tool_call")
ROLE_NAMES: Final[Mapping[Role, str]] = {**AS_WRITTEN, "user": "human", "assistant": "gpt"}
AS_MESSAGES: Final = "write the rows as messages with tool_calls"


class ShareGPTFormat(Format):
    """`conversations`, of which the last turn is the assistant's, and optionally `system`."""

    name: ClassVar = "ShareGPT"
    title: ClassVar = "ShareGPT"
    refuses_ratings: ClassVar = True
    used: ClassVar = ("id", "system", "tools")

    @classmethod
    def match(cls, record: Fields, _: FormatHints, /) -> Match | None:
        """Matches `conversations`."""
        return Match.FIELDS if CONVERSATIONS in record else None

    def columns(self) -> tuple[str, ...]:
        """The column of the conversations."""
        return (CONVERSATIONS,)

    def row(self, record: Fields) -> Row | Issues:
        """The conversation."""
        if CONVERSATIONS not in record:
            return (missing_field_issue(record, CONVERSATIONS),)
        found: list[Issue] = []
        if record.get("tools"):
            found.append(unsupported_field_issue("tools", AS_MESSAGES))
        system = self.system(record, found)
        turns = self._turns(record[CONVERSATIONS], found)
        # The order is checked as in the file.
        found = found or order_issues(CONVERSATIONS, turns, ROLE_NAMES)
        turns = prepend_system(system, CONVERSATIONS, turns, found)
        return tuple(found) or Row(tuple(turns))

    def _turns(self, value: Any, found: list[Issue]) -> list[Message]:
        value = from_json(value)
        if not isinstance(value, list):
            return read_messages(CONVERSATIONS, value, found, None)
        before = len(found)
        messages = [
            self._message(f"{CONVERSATIONS}[{index}]", turn, found) for index, turn in enumerate(value)
        ]
        if len(found) > before:
            return []
        read = read_messages(CONVERSATIONS, messages, found, None)
        # The issues name the fields as they are in the file.
        found[before:] = [_in_file(issue) for issue in found[before:]]
        return read

    def _message(self, path: str, turn: Any, found: list[Issue]) -> Any:
        """A turn converted to a message."""
        if not isinstance(turn, dict):
            found.append(
                Issue(
                    Code.FIELD_TYPE,
                    f"{path} is {type_name(turn)}",
                    "an object with from and value",
                    "correct it",
                    column=path,
                )
            )
            return None
        speaker = turn.get("from")
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            found.append(_role_issue(f"{path}.from", speaker, is_there="from" in turn))
        self.note_unused(
            {name: turn[name] for name in turn if name not in ("from", "value", "weight", "train")},
            f"{CONVERSATIONS}[].",
        )
        message = {"role": role, "weight": turn.get("weight"), "train": turn.get("train")}
        return {**message, "content": turn["value"]} if "value" in turn else message


def _in_file(issue: Issue) -> Issue:
    """The issue of a message, with the field names of the file."""
    what, fix, column, public = (
        (part or "").replace("].content", "].value")
        for part in (issue.what, issue.fix, issue.column, issue.public)
    )
    return replace(issue, what=what, fix=fix, column=column, public=public)


def _role_issue(path: str, speaker: Any, *, is_there: bool) -> Issue:
    if speaker in TOOL_ROLES:
        return Issue(
            Code.UNSUPPORTED,
            f"{path} is {show_value(speaker)}, which is not supported",
            "human, gpt or system",
            AS_MESSAGES,
            column=path,
        )
    state = show_value(speaker) if is_there else "missing"
    return Issue(Code.ROLE, f"{path} is {state}", "human, gpt or system", "correct the role", column=path)
