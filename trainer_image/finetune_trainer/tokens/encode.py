"""Encodes rows as token ids and labels.

The model learns every assistant turn except those of weight 0: the text from the end of the prompt to the end
of the answer, including the end-of-turn token, so that it learns to stop. All other tokens have the label
`IGNORE_INDEX`.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.chattemplate import NONE, TemplateArguments, end_of_turn_id, render

IGNORE_INDEX: Final = -100
"""Label of a token that is not learned; the convention of PyTorch and transformers."""

TOKENIZE: Final[dict[str, Any]] = {"add_special_tokens": False, "verbose": False}
"""Rendered chats already have their control tokens. The trainer checks the length itself."""
TOKENIZE_WITH_OFFSETS: Final[dict[str, Any]] = {**TOKENIZE, "return_offsets_mapping": True}


class RowNotEncodable(Exception):
    """The chat template cannot render this row; the message says why."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a conversation, and one label per token: its id, or `IGNORE_INDEX`."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    def truncate(self, max_length: int) -> "EncodedRow":
        """Truncate the row to its first `max_length` tokens."""
        if len(self.input_ids) <= max_length:
            return self
        return EncodedRow(self.input_ids[:max_length], self.labels[:max_length], truncated=True)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the row."""
        return len(self.input_ids)

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first learned one; all tokens if none is learned."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.labels))


class RowEncoder:
    """Encodes rows with one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
    ) -> None:
        self._tokenizer = tokenizer
        self._arguments = chat_template_kwargs
        end_of_turn = end_of_turn_id(tokenizer, chat_template_kwargs)
        self._end: int = tokenizer.eos_token_id if end_of_turn is None else end_of_turn

    def encode(self, row: Row) -> EncodedRow:
        """Encode the conversation up to the end of its last answer. Raises RowNotEncodable."""
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
                "the chat template renders the finished conversation differently than the prompt for the"
                " answer, so training would not match serving; give the base model another"
                " chat_template.jinja"
            )
        answer = text[spans[-1][0] :]
        if row.output.strip() not in answer:
            raise RowNotEncodable(
                "the model's chat template omits or changes the answer; give the base model another"
                " chat_template.jinja"
            )
        _check_tools(row, text)
        ids, starts = self._tokenize(text, spans[-1][0])
        labels = [IGNORE_INDEX] * len(ids)
        for begin, end in spans:
            self._learn(ids, labels, bisect_left(starts, begin), bisect_left(starts, end))
        if self._end in ids[bisect_left(starts, spans[-1][0]) :]:
            # Generation stops at the end of the turn: what the template adds after it is never generated.
            stop = len(ids) - ids[::-1].index(self._end)
            return EncodedRow(ids[:stop], labels[:stop])
        return EncodedRow([*ids, self._end], [*labels, self._end])

    def encode_prompt(self, row: Row) -> list[int]:
        """Encode the prompt for the row's last answer, as serving does. Raises RowNotEncodable."""
        prompt = self._render(row, len(row.input), add_generation_prompt=True)
        ids: list[int] = self._tokenizer(prompt, **TOKENIZE)["input_ids"]
        return ids

    def _render(self, row: Row, turns: int, *, add_generation_prompt: bool = False) -> str:
        """Render the first `turns` turns of a row as text."""
        try:
            return render(
                self._tokenizer,
                tuple(_for_template(message) for message in row.messages[:turns]),
                tools=None if row.tools is None else json.loads(row.tools),
                add_generation_prompt=add_generation_prompt,
                arguments=self._arguments,
            )
        except TemplateError as error:
            raise RowNotEncodable(f"the model's chat template rejects it: {error}") from error

    def _span(self, text: str, row: Row, index: int) -> tuple[int, int] | None:
        """Start and end of one assistant turn in characters; None if a longer chat renders it differently.

        Templates of reasoning models drop the reasoning of earlier turns; those turns are context only.
        """
        prompt = self._render(row, index, add_generation_prompt=True)
        turn_end = text if index == len(row.messages) - 1 else self._render(row, index + 1)
        if not text.startswith(prompt) or not text.startswith(turn_end):
            return None
        return len(prompt), len(turn_end)

    def _tokenize(self, text: str, answer: int) -> tuple[list[int], list[int]]:
        """Token ids, and the start of each in characters; ids before `answer` are those of the prompt."""
        prompt = self._tokenizer(text[:answer], **TOKENIZE_WITH_OFFSETS)
        whole = self._tokenizer(text, **TOKENIZE_WITH_OFFSETS)
        ids: list[int] = whole["input_ids"]
        starts = [begin for begin, _ in whole["offset_mapping"]]
        length = len(prompt["input_ids"])
        if ids[:length] == prompt["input_ids"] and all(start >= answer for start in starts[length:]):
            return ids, starts
        # The end of the prompt and the start of the answer would merge into one token.
        rest = self._tokenizer(text[answer:], **TOKENIZE_WITH_OFFSETS)
        return (
            [*prompt["input_ids"], *rest["input_ids"]],
            [
                *(begin for begin, _ in prompt["offset_mapping"]),
                *(answer + begin for begin, _ in rest["offset_mapping"]),
            ],
        )

    def _learn(self, ids: list[int], labels: list[int], begin: int, end: int) -> None:
        """Label the tokens of one answer, up to its last end-of-turn token if it has one."""
        answer = ids[begin:end]
        if self._end in answer:
            end -= answer[::-1].index(self._end)
        labels[begin:end] = ids[begin:end]


def _for_template(message: Message) -> dict[str, Any]:
    """A turn without its weight, which chat templates do not know."""
    turn = message.to_dict()
    turn.pop("weight", None)
    return turn


def _check_tools(row: Row, text: str) -> None:
    """Raise RowNotEncodable if the template ignores tools, as templates without tool support do."""
    called = [json.loads(message.tool_calls) for message in row.messages if message.tool_calls is not None]
    offered = [] if row.tools is None else json.loads(row.tools)
    names = [tool["function"]["name"] for tool in (*offered, *(call for calls in called for call in calls))]
    missing = next((name for name in names if name not in text), None)
    if missing is not None:
        raise RowNotEncodable(
            f"the model's chat template omits the tool {missing}; use a base model that supports tool calls,"
            " give it another chat_template.jinja, or remove the tools"
        )
