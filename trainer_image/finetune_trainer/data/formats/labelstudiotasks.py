# SPDX-License-Identifier: Apache-2.0
"""Values of Label Studio's tasks for generative AI: conversations, selected answers, chat messages."""

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from finetune_trainer.data.containers.base import Fields

ROLE_FIELDS: Final = ("role", "author", "from", "speaker")
CONTENT_FIELDS: Final = ("content", "text", "value")
"""Names of a message's fields: first those of the OpenAI API, then those of the tag Paragraphs."""
ROLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("user", "human", "customer", "client", "question"), "user"),
    **dict.fromkeys(("assistant", "bot", "ai", "gpt", "model", "chatbot", "agent", "answer"), "assistant"),
    "system": "system",
}
CHAT: Final = "chatmessage"
"""Type and field of one message of the tag Chat."""
CREATED: Final = "createdAt"
"""Field of a message with its time, by which the messages of the tag Chat are ordered."""
TRANSCRIPT: Final = "_transcript"
"""Suffix of a column in tables that repeats the messages of the tag Chat as a text."""
PAIRS: Final = (
    ("answer1", "answer2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("text1", "text2"),
    ("left", "right"),
)
"""Names of the two answers of a pairwise task, the left one first."""
MAX_LITERAL_CHARACTERS: Final = 1 << 20
"""Maximum length of a list to parse as a Python literal, which takes memory."""


def unpacked(value: Any) -> Any:
    """Parse a list or object that a table has as a text: as JSON, or as a Python literal."""
    if not isinstance(value, str) or not value.startswith(("[{", '{"', "{'")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if len(value) > MAX_LITERAL_CHARACTERS:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def conversation_of(value: Any) -> list[dict[str, Any]] | None:
    """The messages of a conversation, with `role` and `content`; None for another value."""
    value = unpacked(value)
    if not isinstance(value, list) or not value:
        return None
    messages = [_message(each) for each in value]
    return None if None in messages else messages  # type: ignore[return-value]


def selected_of(value: Any) -> str | None:
    """The selected answer of a pairwise task: left, right, or another text for neither."""
    value = _only(unpacked(value))
    return value["selected"] if isinstance(value, dict) and isinstance(value.get("selected"), str) else None


def chat_of(value: Any) -> list[Any] | None:
    """The messages of the tag Chat; None for another value."""
    value = unpacked(value)
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, dict) and CHAT in part for part in parts):
        return None
    return [_message(message) or message for message in (part[CHAT] for part in parts)]


def in_order(messages: Sequence[Any]) -> list[Fields]:
    """Messages of the tag Chat in the order of their times, which are removed; each as `chat_of` reads it."""
    if _are_timed(messages):
        messages = sorted(messages, key=itemgetter(CREATED))
    return [
        {CHAT: {name: each[name] for name in each if name != CREATED} if isinstance(each, dict) else each}
        for each in messages
    ]


def chats_in(record: Fields, names: Iterable[str]) -> list[str]:
    """Those columns of a flat export that have the messages of the tag Chat.

    Tables have a transcript next to them. In JSON_MIN their messages have a time, unlike those of the data.
    """
    found = [name for name in names if conversation_of(record[name]) is not None]
    with_transcript = [name for name in found if name + TRANSCRIPT in record]
    return with_transcript or [name for name in found if _are_timed(unpacked(record[name]))]


def pair_of(names: Iterable[str]) -> tuple[str, str] | None:
    """The two answers of a pairwise task among the names of its data."""
    present = set(names)
    return next((pair for pair in PAIRS if present.issuperset(pair)), None)


def conversations_in(data: Fields, without: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The conversations among a task's fields, except the fields `without`."""
    excluded = set(without)
    return {
        name: messages
        for name, value in data.items()
        if name not in excluded and (messages := conversation_of(value)) is not None
    }


def _are_timed(messages: Sequence[Any]) -> bool:
    """Whether all messages have a time as Label Studio writes it: a number."""
    return all(isinstance(each, dict) and isinstance(each.get(CREATED), int | float) for each in messages)


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _message(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    speaker = next((value[name] for name in ROLE_FIELDS if name in value), None)
    content = next((name for name in CONTENT_FIELDS if name in value), None)
    if not isinstance(speaker, str) or content is None:
        return None
    return {"role": ROLES.get(speaker.strip().lower(), speaker), "content": value[content]}
