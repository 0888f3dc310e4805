"""Encodes preference data as token ids: a prompt and its answers as separate sequences.

The ids are those of `RowEncoder`: the prompt is what serving sends, and an answer ends with its end-of-turn
token, so training, evaluation and serving see the same tokens.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.methods import METHODS, MethodType
from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.chattemplate import NONE, TemplateArguments
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow, RowEncoder


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
        self._encoder = RowEncoder(tokenizer, chat_template_kwargs)

    def encode(self, row: Row) -> EncodedAnswers:
        """Encode the last turn as the answer; earlier turns are context. Raises RowNotEncodable."""
        prompt, answer = self._encoder.encode_answer(row)
        rejected = None
        if row.rejected is not None:
            _, rejected = self._encoder.encode_answer(_with_answer(row, row.rejected))
        return EncodedAnswers(prompt, answer, rejected, row.label is not False)


Encoder = RowEncoder | AnswerEncoder


def make_encoder(
    method: MethodType, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: TemplateArguments = NONE
) -> Encoder:
    """Create the encoder of the rows that `method` trains on.

    Args:
        method: the training method.
        tokenizer: the base model's tokenizer, with its chat template.
        chat_template_kwargs: arguments for the chat template.
    """
    encoder = AnswerEncoder if METHODS[method].rows.is_preference_data else RowEncoder
    return encoder(tokenizer, chat_template_kwargs)


def _with_answer(row: Row, answer: str) -> Row:
    return replace(row, messages=(*row.input, Message("assistant", answer)), rejected=None)
