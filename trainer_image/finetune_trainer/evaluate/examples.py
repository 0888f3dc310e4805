# SPDX-License-Identifier: Apache-2.0
"""The rows of the evaluated split, encoded for the metrics, and how long their answers may be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.scoring.json_text import expected_calls
from finetune_trainer.tokens.chat_template import NONE, TemplateArguments
from finetune_trainer.tokens.encoding import (
    IGNORE_INDEX,
    AnswerEncoder,
    EncodedRow,
    RowEncoder,
    require_encoded,
)
from finetune_trainer.tokens.reasoning import AnswerReader
from finetune_trainer.tokens.rendering import RowNotEncodable


@dataclass(frozen=True)
class Example:
    """One row: the prompt and the correct answers."""

    row: int
    """Number of the row in its split, from 1."""
    encoded: EncodedRow
    """The row encoded as in training, for the loss."""
    prompt: list[int]
    answer_tokens: int
    """Length of the correct answer in tokens, including its end-of-turn token."""
    accepted: frozenset[str]
    """Correct texts: what a client would receive if the model answered with the row's completion."""
    rejected: EncodedRow | None = None
    """The prompt with the rejected answer, for a Preference row."""
    calls: tuple[str, ...] = ()
    """The expected tool calls, as `scoring.toolcalls` returns them."""
    choices: tuple[list[int], ...] = ()
    """Each label as an answer to the prompt, with its end-of-turn token, for a constrained classification."""

    def choice(self, index: int) -> EncodedRow:
        """The prompt with one of the labels; only the label has labels for the loss."""
        answer = self.choices[index]
        return EncodedRow([*self.prompt, *answer], [*[IGNORE_INDEX] * len(self.prompt), *answer])


def encode_examples(
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_sequence_length: int,
    split: str,
    chat_template_kwargs: TemplateArguments = NONE,
    *,
    choices: Sequence[str] = (),
) -> list[Example]:
    """Encode the rows, in their order, with each of the choices as an answer.

    The correct answer of a Preference row is the chosen one. KTO rows whose label is false are skipped.
    Raises StageFailure (INVALID_DATA) with the number of a row that the chat template rejects.
    """
    row_encoder = RowEncoder(tokenizer, chat_template_kwargs)
    answer_encoder = AnswerEncoder(tokenizer, chat_template_kwargs)
    reader = AnswerReader(tokenizer)
    examples: list[Example] = []
    for number, row in enumerate(rows, 1):
        if row.label is False:
            continue
        try:
            example = (
                _preference_example(number, row, answer_encoder, reader, max_sequence_length)
                if row.is_preference
                else _completion_example(number, row, row_encoder, reader, max_sequence_length)
            )
            examples.append(replace(example, choices=_choices(row, choices, row_encoder)))
        except RowNotEncodable as error:
            raise StageFailure(
                FailureReason.INVALID_DATA, f"{split} row {number}: {error}", ExitCode.BAD_DATA
            ) from error
    return examples


def _completion_example(
    number: int, row: Row, encoder: RowEncoder, reader: AnswerReader, max_sequence_length: int
) -> Example:
    prompt, answer = encoder.encode_answer(row)
    return Example(
        row=number,
        encoded=encoder.encode(row).truncate(max_sequence_length),
        prompt=prompt,
        answer_tokens=len(answer),
        accepted=_accepted(row, reader),
        calls=expected_calls(row.messages[-1].tool_calls),
    )


def _preference_example(
    number: int, row: Row, encoder: AnswerEncoder, reader: AnswerReader, max_sequence_length: int
) -> Example:
    answers = encoder.encode(row)
    rejected = answers.rejected
    return Example(
        row=number,
        encoded=answers.row(answers.answer).truncate(max_sequence_length),
        prompt=answers.prompt,
        answer_tokens=len(answers.answer),
        accepted=_accepted(row, reader),
        rejected=None if rejected is None else answers.row(rejected).truncate(max_sequence_length),
    )


def _choices(row: Row, choices: Sequence[str], encoder: RowEncoder) -> tuple[list[int], ...]:
    answers = (Message("assistant", text) for text in choices)
    rows = [replace(row, messages=(*row.input, answer), rejected=None) for answer in answers]
    return tuple(require_encoded(encoded)[1] for encoded in encoder.encode_answers(rows))


def _accepted(row: Row, reader: AnswerReader) -> frozenset[str]:
    # A tool call may have no text; an empty answer must not count as correct.
    return frozenset({reader.reference(row.output)} - {""})


SPARE_TOKENS: Final = 16
"""Tokens that an answer may be longer than the correct one, if it tokenizes the same text differently."""


@dataclass(frozen=True)
class AnswerBudget:
    """Max tokens of answers.

    Without `max_tokens`, an answer that is longer than the correct one ends soon after it: it is wrong
    already. That saves time, and hides how long it would have been.
    """

    max_tokens: int | None
    """Max tokens of every answer; None if they depend on the length of the correct one."""
    cap: int
    """Max tokens of an answer without `max_tokens`."""

    @classmethod
    def of(cls, config: EvaluateConfig) -> "AnswerBudget":
        """The budget of an evaluation."""
        return cls(config.generation.max_tokens, config.max_new_tokens)

    def tokens(self, correct_tokens: int) -> int:
        """Max tokens of an answer whose correct one has `correct_tokens`."""
        if self.max_tokens is not None:
            return self.max_tokens
        return min(self.cap, correct_tokens + SPARE_TOKENS)

    def of_row(self, example: Example, context_length: int | None) -> int:
        """Max tokens of the answer to a row; 0 or less if its prompt fills the model's context.

        Args:
            example: the row.
            context_length: context of the model in tokens; None if it is not stated.
        """
        budget = self.tokens(example.answer_tokens)
        return budget if context_length is None else min(budget, context_length - len(example.prompt))
