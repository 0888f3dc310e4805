"""Measure the lengths of rows in tokens, and reject rows that are too long."""

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
from finetune_trainer.tokens.controltokens import ControlTokens
from finetune_trainer.tokens.rendering import RowNotEncodable

MAX_ROWS_IN_MESSAGE: Final = 5
"""Max rows named in a message. It counts the remaining ones."""

logger = logging.getLogger(__name__)


@dataclass
class TokenLengths:
    """Lengths of a split's rows in tokens, in file order. Of two answers, the longer one counts."""

    whole: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    """Numbers of tokens before the first one that the model is trained on."""
    learned_turns: int = 0
    """Assistant turns that are learned."""
    unlearned_turns: int = 0
    """Assistant turns of weight 1 that are not learned."""
    with_control_tokens: list[tuple[int, str]] = field(default_factory=list)
    """Rows with a control token of the tokenizer in their text, and the first one of each."""

    @property
    def max_tokens(self) -> int:
        """Number of tokens of the longest row; 0 without rows."""
        return max(self.whole, default=0)

    def truncated(self, max_length: int) -> int:
        """Number of rows that are truncated."""
        return sum(length > max_length for length in self.whole)

    def without_answer(self, max_length: int) -> int:
        """Number of rows that lose their whole answer."""
        return sum(prompt >= max_length for prompt in self.prompts)

    def tokens(self, max_length: int) -> int:
        """Number of tokens of all rows after truncation."""
        return sum(min(length, max_length) for length in self.whole)


def measure(
    splits: Mapping[SplitName, list[Row]],
    encoder: Encoder,
    control_tokens: ControlTokens,
    meter: StageMeter,
    cost: int,
) -> dict[SplitName, TokenLengths]:
    """Measure the rows of each split. Each row counts `cost` on the meter.

    Raises StageFailure (INVALID_DATA) naming the rows that the chat template rejects, Preempted.
    """
    measured: dict[SplitName, TokenLengths] = {}
    rejected: list[tuple[str, str]] = []
    for split, rows in splits.items():
        lengths = measured[split] = TokenLengths()
        for number, row in enumerate(rows, 1):
            meter.add(cost)
            try:
                encoded = encoder.encode(row)
            except RowNotEncodable as error:
                rejected.append((f"{split} row {number}", str(error)))
                continue
            lengths.whole.append(encoded.num_tokens)
            lengths.prompts.append(encoded.prompt_length)
            lengths.learned_turns += encoded.learned_turns
            lengths.unlearned_turns += encoded.unlearned_turns
            control_token = control_tokens.first_in(row)
            if control_token is not None:
                lengths.with_control_tokens.append((number, control_token))
    if rejected:
        raise StageFailure(
            FailureReason.INVALID_DATA,
            f"the base model's chat template rejects {_count(len(rejected))}"
            f" ({_first(row for row, _ in rejected)}): {rejected[0][1]}",
            ExitCode.BAD_DATA,
        )
    return measured


def warnings_of(measured: Mapping[SplitName, TokenLengths]) -> tuple[str, ...]:
    """Warnings about turns that are not learned, and about control tokens in the text of rows."""
    warnings = []
    missing = sum(lengths.unlearned_turns for lengths in measured.values())
    if missing:
        turns = missing + sum(lengths.learned_turns for lengths in measured.values())
        warnings.append(
            f"{missing} of {turns} assistant turns are context only and not learned: in a longer"
            " conversation, the chat template renders them differently from how the model generates them."
            " Make each of them the last turn of a row of its own to learn them"
        )
    found = [
        (f"{split} row {number}", token)
        for split, lengths in measured.items()
        for number, token in lengths.with_control_tokens
    ]
    if found:
        have = "has" if len(found) == 1 else "have"
        warnings.append(
            f"{_count(len(found))} {have} a control token of the tokenizer in the text, such as"
            f" {found[0][1]} ({_first(row for row, _ in found)}): the model reads it as the control token."
            " Remove it, unless the text is meant to have it"
        )
    return tuple(warnings)


def check_answers(
    measured: Mapping[SplitName, TokenLengths], max_length: int, context_length: int | None, report_uri: str
) -> None:
    """Raise StageFailure (SEQUENCE_TOO_LONG) if truncation would remove the whole answer of a row."""
    lost = [
        (f"{split} row {number}", prompt)
        for split, lengths in measured.items()
        for number, prompt in enumerate(lengths.prompts, 1)
        if prompt >= max_length
    ]
    if not lost:
        return
    needed = max(lengths.max_tokens for lengths in measured.values())
    advice = (
        f"set hyperparameters.maxSequenceLength to {needed} to keep every row whole, or shorten the prompts"
        if context_length is None or needed <= context_length
        else f"shorten the prompts, because the context of the base model has only {context_length} tokens"
    )
    raise StageFailure(
        FailureReason.SEQUENCE_TOO_LONG,
        f"{_count(len(lost))} would lose the whole answer, because the prompt alone fills maxSequenceLength"
        f" {max_length} ({_first(row for row, _ in lost)}; the longest prompt has"
        f" {max(prompt for _, prompt in lost)} tokens, the longest row {needed}); {advice}."
        f" All lengths: {report_uri}",
        ExitCode.BAD_DATA,
    )


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _first(rows: Iterable[str]) -> str:
    names = list(rows)
    more = "" if len(names) <= MAX_ROWS_IN_MESSAGE else f" and {len(names) - MAX_ROWS_IN_MESSAGE} more"
    return ", ".join(names[:MAX_ROWS_IN_MESSAGE]) + more
