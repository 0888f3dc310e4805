"""Rows that judge answers, as token ids: a prompt and the answers to it, each apart.

The ids are those of `RowEncoder`: the prompt's are what serving sends, and an answer ends with its
end-of-turn token, so that training, evaluation and serving see the same.
"""

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.methods import METHODS, MethodType
from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.encode import IGNORE_INDEX, EncodedRow, RowEncoder, RowNotEncodable


@dataclass(frozen=True, slots=True)
class EncodedAnswers:
    """Of a Preference row the chosen answer and the rejected one; of a KTO row its answer and its label."""

    prompt: list[int]
    answer: list[int]
    rejected: list[int] | None = None
    label: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.answer), len(self.rejected or ()))

    @property
    def prompt_length(self) -> int:
        """Tokens before the answers."""
        return len(self.prompt)

    def row(self, answer: list[int]) -> EncodedRow:
        """The prompt with one of its answers, which alone has labels."""
        return EncodedRow([*self.prompt, *answer], [*[IGNORE_INDEX] * len(self.prompt), *answer])

    def truncate(self, max_length: int) -> "EncodedAnswers":
        """Each sequence without the tokens from `max_length` on."""
        left = max(0, max_length - len(self.prompt))
        return replace(
            self,
            prompt=self.prompt[:max_length],
            answer=self.answer[:left],
            rejected=None if self.rejected is None else self.rejected[:left],
        )


class AnswerEncoder:
    """Encodes Preference and KTO rows with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encoder = RowEncoder(tokenizer)

    def encode(self, row: Row) -> EncodedAnswers:
        """Only the last turn is an answer; those before are context. Raises RowNotEncodable."""
        prompt = self._encoder.encode_prompt(row)
        return EncodedAnswers(
            prompt,
            self._answer(row, prompt),
            None if row.rejected is None else self._answer(_with_answer(row, row.rejected), prompt),
            row.label is not False,
        )

    def _answer(self, row: Row, prompt: list[int]) -> list[int]:
        whole = self._encoder.encode(row).input_ids
        if whole[: len(prompt)] != prompt:
            raise RowNotEncodable(
                "the chat template writes the turns before the answer otherwise than it asks for the answer,"
                " so training would not match serving; give the base model another chat_template.jinja"
            )
        return whole[len(prompt) :]


Encoder = RowEncoder | AnswerEncoder


def make_encoder(method: MethodType, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """From rows to what the method learns from."""
    return AnswerEncoder(tokenizer) if METHODS[method].rows.is_preference_data else RowEncoder(tokenizer)


def _with_answer(row: Row, answer: str) -> Row:
    return replace(row, messages=(*row.input, Message("assistant", answer)), rejected=None)
