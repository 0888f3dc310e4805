"""From rows to token ids and labels.

What the model has to learn is every assistant turn, but for those of weight 0: the text between the point
where it would be asked to answer and the end of that answer, end-of-turn token included, so that it learns to
stop. All else has the label `IGNORE_INDEX`.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.chattemplate import end_of_turn_id, render

IGNORE_INDEX: Final = -100
"""Label of a token that is not learned; PyTorch's and transformers' convention."""

PLAIN: Final[dict[str, Any]] = {"add_special_tokens": False, "verbose": False}
"""Texts of chat templates have their control tokens; their length is our business."""
OFFSETS: Final[dict[str, Any]] = {**PLAIN, "return_offsets_mapping": True}


class RowNotEncodable(Exception):
    """The chat template cannot take this row; the message says why."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a conversation, and for each of them itself or `IGNORE_INDEX`."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    def truncate(self, max_length: int) -> "EncodedRow":
        """The row without the tokens from `max_length` on."""
        if len(self.input_ids) <= max_length:
            return self
        return EncodedRow(self.input_ids[:max_length], self.labels[:max_length], truncated=True)

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return len(self.input_ids)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that is learned; all of them where none is."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.labels))


class RowEncoder:
    """Encodes rows with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        end_of_turn = end_of_turn_id(tokenizer)
        self._end: int = tokenizer.eos_token_id if end_of_turn is None else end_of_turn

    def encode(self, row: Row) -> EncodedRow:
        """The conversation up to the end of its last answer. Raises RowNotEncodable."""
        text = self._render(row, len(row.messages))
        spans = [
            span
            for index, message in enumerate(row.messages)
            if message.role == "assistant"
            and message.learned
            and (span := self._span(text, row, index)) is not None
        ]
        if not spans or spans[-1][1] != len(text):
            raise RowNotEncodable(
                "the chat template writes a finished conversation otherwise than it asks for the answer, so"
                " training would not match serving; give the base model another chat_template.jinja"
            )
        answer = text[spans[-1][0] :]
        if row.output.strip() not in answer:
            raise RowNotEncodable(
                "the model's chat template leaves the answer out or changes it; give the base model another"
                " chat_template.jinja"
            )
        _check_tools(row, text)
        ids, starts = self._tokenize(text, spans[-1][0])
        labels = [IGNORE_INDEX] * len(ids)
        for begin, end in spans:
            self._learn(ids, labels, bisect_left(starts, begin), bisect_left(starts, end))
        if self._end in ids[bisect_left(starts, spans[-1][0]) :]:
            # What the template writes after the last end of turn is never generated.
            stop = len(ids) - ids[::-1].index(self._end)
            return EncodedRow(ids[:stop], labels[:stop])
        return EncodedRow([*ids, self._end], [*labels, self._end])

    def encode_prompt(self, row: Row) -> list[int]:
        """What the model sees when it is asked for the row's last answer. Raises RowNotEncodable."""
        prompt = self._render(row, len(row.input), add_generation_prompt=True)
        ids: list[int] = self._tokenizer(prompt, **PLAIN)["input_ids"]
        return ids

    def _render(self, row: Row, turns: int, *, add_generation_prompt: bool = False) -> str:
        """The first turns of a row as text."""
        try:
            return render(
                self._tokenizer,
                tuple(_for_template(message) for message in row.messages[:turns]),
                tools=None if row.tools is None else json.loads(row.tools),
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise RowNotEncodable(f"the model's chat template does not take it: {error}") from error

    def _span(self, text: str, row: Row, index: int) -> tuple[int, int] | None:
        """Characters of one assistant turn; None where the template writes it otherwise in a longer chat.

        Templates of reasoning models drop the thoughts of earlier turns: those turns are context only.
        """
        before = self._render(row, index, add_generation_prompt=True)
        through = text if index == len(row.messages) - 1 else self._render(row, index + 1)
        if not text.startswith(before) or not text.startswith(through):
            return None
        return len(before), len(through)

    def _tokenize(self, text: str, answer: int) -> tuple[list[int], list[int]]:
        """Ids, and the character where each begins; those before `answer` are exactly the prompt's."""
        prompt = self._tokenizer(text[:answer], **OFFSETS)
        whole = self._tokenizer(text, **OFFSETS)
        ids: list[int] = whole["input_ids"]
        starts = [begin for begin, _ in whole["offset_mapping"]]
        length = len(prompt["input_ids"])
        if ids[:length] == prompt["input_ids"] and all(start >= answer for start in starts[length:]):
            return ids, starts
        # The prompt's last characters and the answer's first would make one token together.
        rest = self._tokenizer(text[answer:], **OFFSETS)
        return (
            [*prompt["input_ids"], *rest["input_ids"]],
            [
                *(begin for begin, _ in prompt["offset_mapping"]),
                *(answer + begin for begin, _ in rest["offset_mapping"]),
            ],
        )

    def _learn(self, ids: list[int], labels: list[int], begin: int, end: int) -> None:
        """Label one answer's tokens, up to its last end-of-turn token where it has one."""
        answer = ids[begin:end]
        if self._end in answer:
            end -= answer[::-1].index(self._end)
        labels[begin:end] = ids[begin:end]


def _for_template(message: Message) -> dict[str, Any]:
    """A turn as chat templates know it: without its weight."""
    turn = message.to_dict()
    turn.pop("weight", None)
    return turn


def _check_tools(row: Row, text: str) -> None:
    """Raise RowNotEncodable where the template writes no tools, as most of those do that know none."""
    called = [json.loads(message.tool_calls) for message in row.messages if message.tool_calls is not None]
    offered = [] if row.tools is None else json.loads(row.tools)
    names = [tool["function"]["name"] for tool in (*offered, *(call for calls in called for call in calls))]
    missing = next((name for name in names if name not in text), None)
    if missing is not None:
        raise RowNotEncodable(
            f"the model's chat template leaves out the tool {missing}; take a base model that was made for"
            " tool calls, give it another chat_template.jinja, or remove the tools"
        )
