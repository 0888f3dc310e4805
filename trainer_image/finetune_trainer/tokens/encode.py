"""Encodes rows as token ids and labels.

The model learns every assistant turn except those of weight 0: the text from the end of the prompt to the end
of the answer, including the end-of-turn token, so that it learns to stop. All other tokens have the label
`IGNORE_INDEX`. `rendering` says where the text of a turn begins and ends.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.tokens.chattemplate import NONE, TemplateArguments, control_ids, end_of_turn_id
from finetune_trainer.tokens.rendering import RowNotEncodable, RowRenderer, Span

IGNORE_INDEX: Final = -100
"""Label of a token that is not learned; the convention of PyTorch and transformers."""

TOKENIZE: Final[dict[str, Any]] = {"add_special_tokens": False, "verbose": False}
"""Rendered chats already have their control tokens. The trainer checks the length itself."""
TOKENIZE_WITH_OFFSETS: Final[dict[str, Any]] = {**TOKENIZE, "return_offsets_mapping": True}


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a conversation, and one label per token: its id, or `IGNORE_INDEX`."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    learned_turns: int = 1
    unlearned_turns: int = 0
    """Assistant turns of weight 1 that the chat template renders in no conversation as they are generated."""

    def truncate(self, max_length: int) -> "EncodedRow":
        """Truncate the row to its first `max_length` tokens."""
        if len(self.input_ids) <= max_length:
            return self
        return replace(
            self, input_ids=self.input_ids[:max_length], labels=self.labels[:max_length], truncated=True
        )

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the row."""
        return len(self.input_ids)

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first learned one; all tokens if none is learned."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.labels))


class RowEncoder:
    """Encodes rows with one tokenizer. Raises StageFailure (INVALID_CONFIG) for arguments that it rejects."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = RowRenderer(tokenizer, chat_template_kwargs)
        self._control = control_ids(tokenizer)
        try:
            end_of_turn = end_of_turn_id(tokenizer, chat_template_kwargs)
        except (TemplateError, TypeError, ValueError) as error:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"chatTemplateKwargs: the base model's chat template rejects {dict(chat_template_kwargs)}:"
                f" {error}; create a run with other arguments",
            ) from error
        self._end: int = tokenizer.eos_token_id if end_of_turn is None else end_of_turn
        self._history_end = self._end_in_history()

    def encode(self, row: Row) -> EncodedRow:
        """Encode the conversation up to the end of its last answer. Raises RowNotEncodable."""
        turns = [
            turn
            for turn, message in enumerate(row.messages)
            if message.role == "assistant" and message.learned
        ]
        rendering = self._renderer.finished(row, turns)
        text, last = rendering.text, len(row.messages) - 1
        answer = rendering.spans[last][0]
        if not self._has_answer(row, text[answer:]):
            raise RowNotEncodable(
                "the model's chat template omits or changes the answer; give the base model another"
                " chat_template.jinja"
            )
        _check_tools(row, text)
        ids, starts = self._tokenize(text, answer)
        learned = [turn for turn in turns if turn in rendering.spans]
        labels = [IGNORE_INDEX] * len(ids)
        for turn in learned:
            self._learn(ids, labels, starts, rendering.spans[turn], is_last=turn == last)
        if self._end in ids[bisect_left(starts, answer) :]:
            # Generation stops at the end of the turn: what the template adds after it is never generated.
            stop = len(ids) - ids[::-1].index(self._end)
            ids, labels = ids[:stop], labels[:stop]
        else:
            ids, labels = [*ids, self._end], [*labels, self._end]
        return EncodedRow(ids, labels, learned_turns=len(learned), unlearned_turns=len(turns) - len(learned))

    def encode_prompt(self, row: Row) -> list[int]:
        """Encode the prompt for the row's last answer, as serving does. Raises RowNotEncodable."""
        ids: list[int] = self._tokenizer(self._renderer.prompt(row), **TOKENIZE)["input_ids"]
        return ids

    def encode_answer(self, row: Row) -> tuple[list[int], list[int]]:
        """Encode the prompt for the last answer as serving does, and the answer. Raises RowNotEncodable."""
        prompt = self.encode_prompt(row)
        # Earlier turns are context, so the rendering has them as serving sends them.
        context = tuple(replace(message, learned=False) for message in row.input)
        conversation = self.encode(replace(row, messages=(*context, row.messages[-1]))).input_ids
        if conversation[: len(prompt)] != prompt:
            raise RowNotEncodable(
                "the chat template renders the turns before the answer differently than the prompt for it, so"
                " training would not match serving; give the base model another chat_template.jinja"
            )
        return prompt, conversation[len(prompt) :]

    def _has_answer(self, row: Row, text: str) -> bool:
        """Whether the rendered answer has the row's answer, or its reasoning and its content."""
        if row.output.strip() in text:
            return True
        if self._renderer.parser is None:
            return False
        return all(part.strip() in text for part in self._renderer.parser.split(row.output))

    def _end_in_history(self) -> int | None:
        """The control token that ends a turn only if another one follows; None if there is none."""
        pair = Row.pair("ping", "pong").messages
        try:
            rendering = self._renderer.finished(Row((*pair, *pair)), [1, 3])
        except RowNotEncodable:
            return None
        if 1 not in rendering.spans:
            return None
        earlier, last = (self._control_in(rendering.text[slice(*rendering.spans[turn])]) for turn in (1, 3))
        return earlier[-1] if earlier and last and earlier[-1] not in last else None

    def _control_in(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, **TOKENIZE)["input_ids"]
        return [token for token in ids if token in self._control]

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

    def _learn(
        self, ids: list[int], labels: list[int], starts: list[int], span: Span, *, is_last: bool
    ) -> None:
        """Label the tokens of one answer, up to its end-of-turn token if it has one."""
        begin, end = bisect_left(starts, span[0]), bisect_left(starts, span[1])
        ends = {self._end} if is_last else self._control
        at = next((at for at in range(end - 1, begin - 1, -1) if ids[at] in ends), None)
        if at is not None:
            # A model that learned to generate this token would not stop there.
            end = at if ids[at] == self._history_end else at + 1
        labels[begin:end] = ids[begin:end]


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
