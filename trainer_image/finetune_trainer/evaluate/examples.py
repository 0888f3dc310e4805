"""The rows of the evaluated split, ready for the model."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.tokens.answers import AnswerEncoder
from finetune_trainer.tokens.encode import EncodedRow, RowEncoder, RowNotEncodable


@dataclass(frozen=True)
class Example:
    """One row: what is asked, what is right."""

    encoded: EncodedRow
    """As in training, for the loss."""
    prompt: list[int]
    answer_tokens: int
    """Length of the right answer, its end included."""
    accepted: frozenset[str]
    """Texts that are right: the row's completion, and the same as the chat template writes it."""
    rejected: EncodedRow | None = None
    """Of a Preference row, the prompt with the rejected answer."""


def encode_examples(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, split: str
) -> list[Example]:
    """The rows by length of the prompt, so that a batch has little padding.

    Of a Preference row the chosen answer is the right one; of KTO rows only those with a good answer count.
    Raises StageFailure (INVALID_DATA) naming the row that the chat template refuses.
    """
    whole, apart = RowEncoder(tokenizer), AnswerEncoder(tokenizer)
    examples: list[Example] = []
    for number, row in enumerate(rows, 1):
        if row.label is False:
            continue
        try:
            examples.append(
                _judged(row, apart, tokenizer, max_sequence_length)
                if row.is_preference
                else _plain(row, whole, tokenizer, max_sequence_length)
            )
        except RowNotEncodable as error:
            raise StageFailure(
                FailureReason.INVALID_DATA, f"{split} row {number}: {error}", ExitCode.BAD_DATA
            ) from error
    return sorted(examples, key=lambda example: len(example.prompt))


def _plain(
    row: Row, encoder: RowEncoder, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int
) -> Example:
    whole, prompt = encoder.encode(row), encoder.encode_prompt(row)
    answer = whole.input_ids[len(prompt) :]
    return Example(
        encoded=whole.truncate(max_sequence_length),
        prompt=prompt,
        answer_tokens=len(answer),
        accepted=_accepted(row, tokenizer, answer),
    )


def _judged(
    row: Row, encoder: AnswerEncoder, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int
) -> Example:
    answers = encoder.encode(row)
    rejected = answers.rejected
    return Example(
        encoded=answers.row(answers.answer).truncate(max_sequence_length),
        prompt=answers.prompt,
        answer_tokens=len(answers.answer),
        accepted=_accepted(row, tokenizer, answers.answer),
        rejected=None if rejected is None else answers.row(rejected).truncate(max_sequence_length),
    )


def _accepted(row: Row, tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> frozenset[str]:
    # A tool call may come without text; then nothing is no right answer.
    return frozenset({row.output.strip(), decode_answer(tokenizer, answer)} - {""})


def decode_answer(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> str:
    """An answer as it is compared: without control tokens and surrounding white space."""
    text = tokenizer.decode(answer, skip_special_tokens=True)
    return str(text).strip()
