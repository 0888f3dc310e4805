# SPDX-License-Identifier: Apache-2.0
"""Encodes preference data as token ids: a prompt and its answers as separate sequences.

The ids are those of `RowEncoder`: the prompt is what serving sends, and an answer ends with its end-of-turn
token, so training, evaluation and serving see the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.method import OBJECTIVES, Objective
from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.chattemplate import NONE, TemplateArguments
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow, RowEncoder, require_encoded
from finetune_trainer.tokens.rendering import RowNotEncodable


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
        encoded = iter(self._encoder.encode_answers([each for row in rows for each in _each_answer(row)]))
        return [_joined(row, [next(encoded) for _ in _each_answer(row)]) for row in rows]


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


def _each_answer(row: Row) -> list[Row]:
    """The row once with each of its answers."""
    if row.rejected is None:
        return [row]
    rejected = replace(row, messages=(*row.input, Message("assistant", row.rejected)), rejected=None)
    return [row, rejected]


def _joined(
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
