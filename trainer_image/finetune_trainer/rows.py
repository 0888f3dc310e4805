"""Rows of a prepared dataset: one JSON object a line, every row a conversation that ends with an answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from finetune_trainer import canonical

Role = Literal["system", "user", "assistant"]
RowForm = Literal["PromptCompletion", "ChatMessages"]

SplitName = Literal["train", "validation", "test"]

SPLIT_FILES: Final[Mapping[SplitName, str]] = {
    "train": "train.jsonl",
    "validation": "validation.jsonl",
    "test": "test.jsonl",
}
"""File of each split in a dataset's folder; a split without rows is an empty file."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        """As in a chat template's `messages` and in a prepared file."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation whose last turn is the assistant's; a prompt with its completion is one of two turns.

    `form` says how the row is written, and changes nothing about how it is trained.
    """

    messages: tuple[Message, ...]
    form: RowForm = "ChatMessages"

    @classmethod
    def pair(cls, prompt: str, completion: str) -> "Row":
        """A prompt and its completion: what the user says, and what the model shall answer."""
        return cls((Message("user", prompt), Message("assistant", completion)), "PromptCompletion")

    @property
    def input(self) -> tuple[Message, ...]:
        """Every turn before the last: what the model sees when it answers."""
        return self.messages[:-1]

    @property
    def output(self) -> str:
        """The last turn: the answer to learn, and to be judged by."""
        return self.messages[-1].content

    def to_dict(self) -> dict[str, Any]:
        """The row as in a prepared file."""
        if self.form == "PromptCompletion":
            return {"prompt": self.messages[0].content, "completion": self.messages[1].content}
        return {"messages": [message.to_dict() for message in self.messages]}

    def to_line(self) -> str:
        """The row's line in a prepared file, without its end."""
        return canonical.text(self.to_dict())


def load_rows(path: Path) -> list[Row]:
    """The rows of one prepared file, in order; none where the file is absent. Raises OSError."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [_parse(line) for line in lines]


def _parse(line: str) -> Row:
    value = json.loads(line)
    if "messages" in value:
        return Row(tuple(Message(message["role"], message["content"]) for message in value["messages"]))
    return Row.pair(value["prompt"], value["completion"])
