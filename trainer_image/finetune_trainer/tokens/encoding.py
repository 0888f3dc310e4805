# SPDX-License-Identifier: Apache-2.0
"""Encodes rows as token ids: conversations with labels, and preference data as a prompt and its answers.

The model learns every assistant turn except those of weight 0: the text from the end of the prompt to the end
of the answer, including the end-of-turn token, so that it learns to stop. All other tokens have the label
`IGNORE_INDEX`. `rendering` determines where the text of a turn begins and ends.

The prompt and the answers of preference data are separate sequences, with the ids of `RowEncoder`: the prompt
is what serving sends, and an answer ends with its end-of-turn token. So training, evaluation and serving see
the same tokens.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.method import OBJECTIVES, Objective
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.chat_template import (
    NONE,
    TemplateArguments,
    control_ids,
    end_of_calls_id,
    end_of_turn_id,
)
from finetune_trainer.tokens.rendering import RowNotEncodable, RowRenderer, Span, check_calls, check_tools

IGNORE_INDEX: Final = -100
"""Label of a token that is not learned; the convention of PyTorch and transformers."""

EncodedT = TypeVar("EncodedT")

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


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A rendered row."""

    text: str
    answer: int
    """Start of the last answer in characters."""
    spans: dict[int, Span]
    """What the model generates in the turns to learn, in characters."""
    last: int
    """The last turn."""
    ends: frozenset[int]
    """Tokens that end the last turn."""
    unlearned_turns: int

    @property
    def prompt(self) -> str:
        """The text before the last answer."""
        return self.text[: self.answer]


class RowEncoder:
    """Encodes rows with one tokenizer. Raises StageFailure (INVALID_CONFIG) for arguments that it rejects."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template_kwargs = chat_template_kwargs
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
        end_of_calls = end_of_calls_id(tokenizer, chat_template_kwargs)
        self._ends_of_calls = frozenset({self._end} if end_of_calls is None else {self._end, end_of_calls})
        self._history_end = self._end_in_history()

    def encode(self, row: Row) -> EncodedRow:
        """Encode the conversation up to the end of its last answer. Raises RowNotEncodable."""
        return require_encoded(self.encode_batch([row])[0])

    def encode_batch(self, rows: Sequence[Row]) -> list[EncodedRow | RowNotEncodable]:
        """Encode rows as `encode` does, in less time; a row that cannot be encoded has its error.

        The tokenizer reads all texts at once, with a thread per processor.
        """
        conversations = [_catch_rejection(self._conversation, row) for row in rows]
        tokens = iter(self._tokenize([each for each in conversations if isinstance(each, _Conversation)]))
        return [
            self._label(each, *next(tokens)) if isinstance(each, _Conversation) else each
            for each in conversations
        ]

    def encode_prompt(self, row: Row) -> list[int]:
        """Encode the prompt for the row's last answer, as serving does. Raises RowNotEncodable."""
        ids: list[int] = self.tokenizer(self._renderer.prompt(row), **TOKENIZE)["input_ids"]
        return ids

    def encode_answer(self, row: Row) -> tuple[list[int], list[int]]:
        """Encode the prompt for the last answer as serving does, and the answer. Raises RowNotEncodable."""
        return require_encoded(self.encode_answers([row])[0])

    def encode_answers(self, rows: Sequence[Row]) -> list[tuple[list[int], list[int]] | RowNotEncodable]:
        """Encode rows as `encode_answer` does, in less time; a row that cannot be encoded has its error."""
        prompts = [_catch_rejection(self._renderer.prompt, row) for row in rows]
        # Earlier turns are context, so the rendering has them as serving sends them.
        conversations = self.encode_batch([_with_context(row) for row in rows])
        ids = iter(self._ids([each for each in prompts if isinstance(each, str)]))
        return [
            _split(next(ids), conversation) if isinstance(prompt, str) else prompt
            for prompt, conversation in zip(prompts, conversations, strict=True)
        ]

    def _conversation(self, row: Row) -> "_Conversation":
        """Render a row and check that the template rendered all of it. Raises RowNotEncodable."""
        turns = [
            turn
            for turn, message in enumerate(row.messages)
            if message.role == "assistant" and message.learned
        ]
        rendering = self._renderer.finished(row, turns)
        last = len(row.messages) - 1
        answer = rendering.spans[last][0]
        if not self._has_answer(row, rendering.text[answer:]):
            raise RowNotEncodable(
                "the model's chat template omits or changes the answer; give the base model another"
                " chat_template.jinja"
            )
        check_tools(row, rendering.text)
        spans = {turn: rendering.spans[turn] for turn in turns if turn in rendering.spans}
        check_calls(row, {turn: rendering.text[begin:end] for turn, (begin, end) in spans.items()})
        return _Conversation(
            rendering.text,
            answer,
            spans,
            last=last,
            ends=frozenset({self._end}) if row.messages[last].tool_calls is None else self._ends_of_calls,
            unlearned_turns=len(turns) - len(spans),
        )

    def _label(self, conversation: "_Conversation", ids: list[int], starts: list[int]) -> EncodedRow:
        """Label the tokens of the learned turns, and end the row with the end of its last turn."""
        labels = [IGNORE_INDEX] * len(ids)
        for turn, span in conversation.spans.items():
            ends = conversation.ends if turn == conversation.last else self._control
            self._learn(ids, labels, starts, span, ends)
        first = bisect_left(starts, conversation.answer)
        stop = next((at for at in range(len(ids), first, -1) if ids[at - 1] in conversation.ends), None)
        if stop is not None:
            # Generation stops at the end of the turn: what the template adds after it is never generated.
            ids, labels = ids[:stop], labels[:stop]
        else:
            ids, labels = [*ids, self._end], [*labels, self._end]
        return EncodedRow(
            ids,
            labels,
            learned_turns=len(conversation.spans),
            unlearned_turns=conversation.unlearned_turns,
        )

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
        ids: list[int] = self.tokenizer(text, **TOKENIZE)["input_ids"]
        return [token for token in ids if token in self._control]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, **TOKENIZE)["input_ids"] if texts else []
        return ids

    def _tokenize(self, conversations: "list[_Conversation]") -> Iterator[tuple[list[int], list[int]]]:
        """Token ids, and the start of each in characters; ids before the answer are those of the prompt."""
        if not conversations:
            return
        prompts = self._ids([each.prompt for each in conversations])
        wholes = self.tokenizer([each.text for each in conversations], **TOKENIZE_WITH_OFFSETS)
        for each, prompt, ids, offsets in zip(
            conversations, prompts, wholes["input_ids"], wholes["offset_mapping"], strict=True
        ):
            starts = [begin for begin, _ in offsets]
            if ids[: len(prompt)] == prompt and all(start >= each.answer for start in starts[len(prompt) :]):
                yield ids, starts
            else:
                # The end of the prompt and the start of the answer would merge into one token.
                yield self._tokenize_apart(each)

    def _tokenize_apart(self, conversation: "_Conversation") -> tuple[list[int], list[int]]:
        prompt = self.tokenizer(conversation.prompt, **TOKENIZE_WITH_OFFSETS)
        rest = self.tokenizer(conversation.text[conversation.answer :], **TOKENIZE_WITH_OFFSETS)
        return (
            [*prompt["input_ids"], *rest["input_ids"]],
            [
                *(begin for begin, _ in prompt["offset_mapping"]),
                *(conversation.answer + begin for begin, _ in rest["offset_mapping"]),
            ],
        )

    def _learn(
        self, ids: list[int], labels: list[int], starts: list[int], span: Span, ends: frozenset[int]
    ) -> None:
        """Label the tokens of one answer, up to the last of `ends` if it has one of them."""
        begin, end = bisect_left(starts, span[0]), bisect_left(starts, span[1])
        at = next((at for at in range(end - 1, begin - 1, -1) if ids[at] in ends), None)
        if at is not None:
            # A model that learned to generate this token would not stop there.
            end = at if ids[at] == self._history_end else at + 1
        labels[begin:end] = ids[begin:end]


def require_encoded(encoded: EncodedT | RowNotEncodable) -> EncodedT:
    """Return what was encoded. Raises RowNotEncodable."""
    if isinstance(encoded, RowNotEncodable):
        raise encoded
    return encoded


def _catch_rejection(render: Callable[[Row], EncodedT], row: Row) -> EncodedT | RowNotEncodable:
    """What `render` returns, or the error that it raises."""
    try:
        return render(row)
    except RowNotEncodable as error:
        return error


def _with_context(row: Row) -> Row:
    """The row with its last turn to learn only."""
    context = tuple(replace(message, learned=False) for message in row.input)
    return replace(row, messages=(*context, row.messages[-1]))


def _split(
    prompt: list[int], conversation: EncodedRow | RowNotEncodable
) -> tuple[list[int], list[int]] | RowNotEncodable:
    """Split an encoded conversation into this prompt and the answer."""
    if isinstance(conversation, RowNotEncodable):
        return conversation
    ids = conversation.input_ids
    if ids[: len(prompt)] != prompt:
        return RowNotEncodable(
            "the chat template renders the turns before the answer differently than the prompt for it, so"
            " training would not match serving; give the base model another chat_template.jinja"
        )
    return prompt, ids[len(prompt) :]


@dataclass(frozen=True, slots=True)
class EncodedAnswers:
    """A Preference row with its chosen and rejected answer, or a KTO row with its answer and label."""

    prompt: list[int]
    answer: list[int]
    rejected: list[int] | None = None
    label: bool = True
    learned_turns: ClassVar[int] = 1
    unlearned_turns: ClassVar[int] = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.answer), len(self.rejected or ()))

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the answers."""
        return len(self.prompt)

    def row(self, answer: list[int]) -> EncodedRow:
        """The prompt with one of its answers; only the answer has labels."""
        return EncodedRow([*self.prompt, *answer], [*[IGNORE_INDEX] * len(self.prompt), *answer])

    def truncate(self, max_length: int) -> "EncodedAnswers":
        """Truncate each sequence to its first `max_length` tokens."""
        answer_length = max(0, max_length - len(self.prompt))
        return replace(
            self,
            prompt=self.prompt[:max_length],
            answer=self.answer[:answer_length],
            rejected=None if self.rejected is None else self.rejected[:answer_length],
        )


class AnswerEncoder:
    """Encodes Preference and KTO rows with one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template_kwargs = chat_template_kwargs
        self._encoder = RowEncoder(tokenizer, chat_template_kwargs)

    def encode(self, row: Row) -> EncodedAnswers:
        """Encode the last turn as the answer; earlier turns are context. Raises RowNotEncodable."""
        return require_encoded(self.encode_batch([row])[0])

    def encode_batch(self, rows: Sequence[Row]) -> list[EncodedAnswers | RowNotEncodable]:
        """Encode rows as `encode` does, in less time; a row that cannot be encoded has its error."""
        encoded = iter(self._encoder.encode_answers([each for row in rows for each in _split_answers(row)]))
        return [_join_answers(row, [next(encoded) for _ in _split_answers(row)]) for row in rows]


Encoder = RowEncoder | AnswerEncoder


def make_encoder(
    objective: Objective, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
) -> Encoder:
    """Create the encoder of the rows that an objective trains on.

    Args:
        objective: the training objective.
        tokenizer: the base model's tokenizer, with its chat template.
        chat_template_kwargs: arguments for the chat template.
    """
    encoder = AnswerEncoder if OBJECTIVES[objective].rows.is_preference_data else RowEncoder
    return encoder(tokenizer, chat_template_kwargs)


def evaluation_encoder(
    row: Row | None, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
) -> Encoder:
    """Create the encoder of rows that are evaluated, by the form of one of them, whatever the method."""
    encoder = AnswerEncoder if row is not None and row.is_preference else RowEncoder
    return encoder(tokenizer, chat_template_kwargs)


def _split_answers(row: Row) -> list[Row]:
    """The row once with each of its answers."""
    if row.rejected is None:
        return [row]
    rejected = replace(row, messages=(*row.input, Message("assistant", row.rejected)), rejected=None)
    return [row, rejected]


def _join_answers(
    row: Row, answers: list[tuple[list[int], list[int]] | RowNotEncodable]
) -> EncodedAnswers | RowNotEncodable:
    """The row with its encoded answers, or the error of the first that cannot be encoded."""
    encoded: list[list[int]] = []
    prompt: list[int] = []
    for each in answers:
        if isinstance(each, RowNotEncodable):
            return each
        prompt, answer = each
        encoded.append(answer)
    return EncodedAnswers(
        prompt, encoded[0], encoded[1] if row.rejected is not None else None, row.label is not False
    )
