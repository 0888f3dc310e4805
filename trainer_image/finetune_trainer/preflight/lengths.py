"""The rows in tokens: which are too long, and how long they are."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.rows import Row
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.tokens.answers import Encoder
from finetune_trainer.tokens.encode import RowNotEncodable

MAX_ROWS_IN_MESSAGE: Final = 5
"""Rows that a message names; the log has the others' number."""

logger = logging.getLogger(__name__)


@dataclass
class TokenLengths:
    """Lengths of one split's rows in tokens, in the order of its file; of two answers the longer counts."""

    whole: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    """Tokens before the first that is learned."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 without rows."""
        return max(self.whole, default=0)

    def cut(self, max_length: int) -> int:
        """How many rows lose their end."""
        return sum(length > max_length for length in self.whole)

    def without_answer(self, max_length: int) -> int:
        """How many rows lose their whole answer."""
        return sum(prompt >= max_length for prompt in self.prompts)

    def tokens(self, max_length: int) -> int:
        """Tokens of all rows after the cut."""
        return sum(min(length, max_length) for length in self.whole)


def measure(
    splits: Mapping[SplitName, list[Row]], encoder: Encoder, meter: StageMeter, cost: int
) -> dict[SplitName, TokenLengths]:
    """The lengths of each split's rows; each row counts `cost` on the meter.

    Raises StageFailure (INVALID_DATA) naming the rows that the chat template refuses, Preempted.
    """
    measured: dict[SplitName, TokenLengths] = {}
    refused: list[tuple[str, str]] = []
    for split, rows in splits.items():
        lengths = measured[split] = TokenLengths()
        for number, row in enumerate(rows, 1):
            meter.add(cost)
            try:
                encoded = encoder.encode(row)
            except RowNotEncodable as error:
                refused.append((f"{split} row {number}", str(error)))
                continue
            lengths.whole.append(encoded.num_tokens)
            lengths.prompts.append(encoded.prompt_length)
    if refused:
        raise StageFailure(
            FailureReason.INVALID_DATA,
            f"{_count(len(refused))} cannot be written with the base model's chat template"
            f" ({_named(place for place, _ in refused)}): {refused[0][1]}",
            ExitCode.BAD_DATA,
        )
    return measured


def check_answers(
    measured: Mapping[SplitName, TokenLengths], max_length: int, context_length: int | None, report_uri: str
) -> None:
    """Raises StageFailure (SEQUENCE_TOO_LONG) where rows would lose their whole answer to the cut."""
    lost = [
        (f"{split} row {number}", prompt)
        for split, lengths in measured.items()
        for number, prompt in enumerate(lengths.prompts, 1)
        if prompt >= max_length
    ]
    if not lost:
        return
    needed = max(lengths.longest for lengths in measured.values())
    advice = (
        f"set hyperparameters.maxSequenceLength to {needed} to keep every row whole, or shorten the prompts"
        if context_length is None or needed <= context_length
        else f"the base model reads at most {context_length} tokens: shorten the prompts"
    )
    raise StageFailure(
        FailureReason.SEQUENCE_TOO_LONG,
        f"{_count(len(lost))} would lose the whole answer, because the prompt alone fills maxSequenceLength"
        f" {max_length} ({_named(place for place, _ in lost)}; the longest prompt has"
        f" {max(prompt for _, prompt in lost)} tokens, the longest row {needed}); {advice}."
        f" All lengths: {report_uri}",
        ExitCode.BAD_DATA,
    )


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _named(places: Iterable[str]) -> str:
    every = list(places)
    more = "" if len(every) <= MAX_ROWS_IN_MESSAGE else f" and {len(every) - MAX_ROWS_IN_MESSAGE} more"
    return ", ".join(every[:MAX_ROWS_IN_MESSAGE]) + more
