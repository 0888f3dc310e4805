# SPDX-License-Identifier: Apache-2.0
"""Rows of a prepared dataset: one JSON object per line, each a conversation that ends with an answer.

    {"prompt": text, "completion": text}                        PromptCompletion
    {"messages": [message, …], "tools": [tool, …]}              ChatMessages; `tools` if there are any
    {"prompt": …, "chosen": …, "rejected": …}                   Preference
    {"prompt": …, "completion": …, "label": true | false}       KTO

With kept columns of the source, each also has `columns`: an object of texts, without those that are empty.
As in TRL, the texts of the last two are strings if the prompt is one user turn, else lists of messages. A
message has `role` and `content`, and optionally `weight: 0` (not learned), `tool_calls`, `tool_call_id` and
`name`, as in the chat API of OpenAI.

The fields of a line are sorted by name, except inside of `tools` and `tool_calls`: they have the order of the
source, because chat templates print them in this order.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from finetune_trainer import canonical_json
from finetune_trainer.contract.vocabulary import RowForm, SplitName

Role = Literal["system", "user", "assistant", "tool"]

SPLIT_FILES: Final[Mapping[SplitName, str]] = {
    "train": "train.jsonl",
    "validation": "validation.jsonl",
    "test": "test.jsonl",
}
"""File of each split in a dataset's folder; a split without rows is an empty file."""
LEARNED_FROM: Final[tuple[SplitName, ...]] = ("train", "validation")
"""Splits that a training reads."""
SOURCE_ORDER: Final = ("tools", "tool_calls")
"""Fields whose content is not sorted."""


# Messages and rows are immutable but not frozen: millions are created, and a frozen one takes four times as
# long to create.
@dataclass(slots=True, unsafe_hash=True)
class Message:
    """One turn."""

    role: Role
    content: str
    learned: bool = True
    """Whether an assistant's turn is learned, or context only."""
    tool_calls: str | None = None
    """JSON of the calls in an assistant's turn, in the order of the source."""
    tool_call_id: str | None = None
    """Id of the call that a tool's turn answers."""
    name: str | None = None
    """Name of the tool in a tool's turn."""

    def to_dict(self) -> dict[str, Any]:
        """Return the message as in a chat template's `messages` and in a prepared file."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if not self.learned:
            message["weight"] = 0
        if self.tool_calls is not None:
            message["tool_calls"] = json.loads(self.tool_calls)
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> "Message":
        """Build a message from a prepared file."""
        calls = message.get("tool_calls")
        return cls(
            message["role"],
            message["content"],
            message.get("weight", 1) != 0,
            None if calls is None else canonical_json.encode_in_order(calls),
            message.get("tool_call_id"),
            message.get("name"),
        )


@dataclass(slots=True, unsafe_hash=True)
class Row:
    """A conversation whose last turn is the assistant's. A prompt with its completion has two turns.

    `form` is the written form of the row. A Preference row ends with the chosen answer and also has the
    rejected one. A KTO row has a label: whether its answer is good.
    """

    messages: tuple[Message, ...]
    form: RowForm = "ChatMessages"
    tools: str | None = None
    """JSON of the tools that the assistant may call, in the order of the source."""
    rejected: str | None = None
    label: bool | None = None
    columns: tuple[tuple[str, str], ...] = ()
    """Names and values of kept columns of the source, by name. A model never sees them."""

    @classmethod
    def pair(cls, prompt: str, completion: str) -> "Row":
        """Build a row from a user's prompt and the completion to learn."""
        return cls((Message("user", prompt), Message("assistant", completion)), "PromptCompletion")

    @property
    def is_preference(self) -> bool:
        """Whether the row is preference data."""
        return self.form in ("Preference", "KTO")

    @property
    def input(self) -> tuple[Message, ...]:
        """All turns before the last: the model's input for the answer."""
        return self.messages[:-1]

    @property
    def output(self) -> str:
        """Text of the last turn: the answer to learn, and the reference in evaluation."""
        return self.messages[-1].content

    def to_dict(self) -> dict[str, Any]:
        """Return the row as in a prepared file."""
        return {**self._parts(), "columns": dict(self.columns)} if self.columns else self._parts()

    def to_line(self) -> str:
        """Return the row's line in a prepared file, without the line break."""
        if self.form == "PromptCompletion" and not self.columns:
            prompt, completion = (
                canonical_json.quoted(self.messages[0].content),
                canonical_json.quoted(self.output),
            )
            return f'{{"completion":{completion},"prompt":{prompt}}}'
        return canonical_json.encode_in_order(_by_name(self.to_dict()))

    def _parts(self) -> dict[str, Any]:
        if self.form == "ChatMessages":
            row: dict[str, Any] = {"messages": [message.to_dict() for message in self.messages]}
            if self.tools is not None:
                row["tools"] = json.loads(self.tools)
            return row
        if self.form == "PromptCompletion":
            return {"prompt": self.messages[0].content, "completion": self.output}
        is_text = len(self.messages) == 2 and self.messages[0].role == "user"

        def answer(text: str) -> Any:
            return text if is_text else [{"role": "assistant", "content": text}]

        prompt = self.messages[0].content if is_text else [message.to_dict() for message in self.input]
        if self.form == "Preference":
            return {"prompt": prompt, "chosen": answer(self.output), "rejected": answer(self.rejected or "")}
        return {"prompt": prompt, "completion": answer(self.output), "label": bool(self.label)}


def split_paths(folder: Path) -> dict[SplitName, Path]:
    """The file of each split in the folder of a dataset."""
    return {split: folder / name for split, name in SPLIT_FILES.items()}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a prepared file, in order. Yields no rows if the file is absent. Raises OSError."""
    if path.exists():
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from map(parse_row, lines)


def load_rows(path: Path) -> list[Row]:
    """Load all rows of a prepared file into memory; `read_rows` reads files of any size. Raises OSError."""
    return list(read_rows(path))


def count_rows(path: Path) -> int:
    """Count the rows of a prepared file without parsing them. Raises OSError."""
    if not path.exists():
        return 0
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def parse_row(line: str) -> Row:
    """Parse one line of a prepared file."""
    value = json.loads(line)
    row = _conversation(value)
    return replace(row, columns=tuple(value["columns"].items())) if "columns" in value else row


def _conversation(value: Mapping[str, Any]) -> Row:
    if "messages" in value:
        tools = value.get("tools")
        return Row(
            tuple(map(Message.from_dict, value["messages"])),
            tools=None if tools is None else canonical_json.encode_in_order(tools),
        )
    prompt = value["prompt"]
    turns = (Message("user", prompt),) if isinstance(prompt, str) else tuple(map(Message.from_dict, prompt))
    if "chosen" in value:
        return Row(
            (*turns, Message("assistant", _text(value["chosen"]))),
            "Preference",
            rejected=_text(value["rejected"]),
        )
    answer = Message("assistant", _text(value["completion"]))
    if "label" in value:
        return Row((*turns, answer), "KTO", label=value["label"])
    return Row((*turns, answer), "PromptCompletion")


def _by_name(value: Any) -> Any:
    """The value with the fields of its objects sorted, except inside of `SOURCE_ORDER`."""
    if isinstance(value, list):
        return [_by_name(each) for each in value]
    if isinstance(value, dict):
        return {
            name: each if name in SOURCE_ORDER else _by_name(each) for name, each in sorted(value.items())
        }
    return value


def _text(answer: str | list[dict[str, str]]) -> str:
    return answer if isinstance(answer, str) else answer[0]["content"]
