"""The rows of the evaluated split, ready for the model."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract import ExitCode, FailureReason
from finetune_trainer.failure import StageFailure
from finetune_trainer.model.encode import EncodedRow, RowEncoder, RowNotEncodable
from finetune_trainer.rows import Row


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


def encode_examples(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, split: str
) -> list[Example]:
    """All rows, by length of the prompt, so that a batch has little padding.

    Raises StageFailure (INVALID_DATA) naming the row that the chat template refuses.
    """
    encoder = RowEncoder(tokenizer)
    examples: list[Example] = []
    for number, row in enumerate(rows, 1):
        try:
            whole, prompt = encoder.encode(row), encoder.encode_prompt(row)
        except RowNotEncodable as error:
            raise StageFailure(
                FailureReason.INVALID_DATA, f"{split} row {number}: {error}", ExitCode.BAD_DATA
            ) from error
        answer = whole.input_ids[len(prompt) :]
        examples.append(
            Example(
                encoded=whole.cut(max_sequence_length),
                prompt=prompt,
                answer_tokens=len(answer),
                # A tool call may come without text; then nothing is no right answer.
                accepted=frozenset({row.output.strip(), text_of(tokenizer, answer)} - {""}),
            )
        )
    return sorted(examples, key=lambda example: len(example.prompt))


def text_of(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> str:
    """An answer as it is compared: without control tokens and surrounding white space."""
    text = tokenizer.decode(answer, skip_special_tokens=True)
    return str(text).strip()
