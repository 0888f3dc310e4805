# SPDX-License-Identifier: Apache-2.0
"""Lengths of rows in tokens, what the user should know of them, and rows that are too long."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, SplitName
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.tokens.token_files import MAX_NAMED_ROWS, FoundRows, Int64s, SplitFacts, TokenFiles


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of a split's used rows in tokens, in file order. Of two answers, the longer one counts."""

    numbers: Int64s
    """Number of each row in its split, from 1."""
    whole: Int64s
    prompts: Int64s
    """Numbers of tokens before the first one that the model is trained on."""
    facts: SplitFacts

    @classmethod
    def of(cls, files: TokenFiles, split: SplitName, without: Collection[int] = ()) -> "TokenLengths":
        """The lengths of the rows of a split, except those with the numbers in `without`."""
        rows = files.rows(split, without=without)
        numbers = np.array(rows.numbers, dtype=np.int64)
        return cls(numbers, rows.lengths, rows.prompt_lengths, files.facts[split])

    @property
    def max_tokens(self) -> int:
        """Number of tokens of the longest row; 0 without rows."""
        return int(self.whole.max(initial=0))

    def longer(self, max_length: int) -> FoundRows:
        """Rows with more tokens."""
        return _found(self.numbers[self.whole > max_length])

    def without_answer(self, max_length: int) -> FoundRows:
        """Rows that lose their whole answer if they are truncated."""
        return _found(self.numbers[self.prompts >= max_length])


def warnings_of(measured: Mapping[SplitName, TokenLengths]) -> tuple[str, ...]:
    """Warnings about turns that are not learned, and about control tokens in the text of rows."""
    warnings = []
    missing = sum(lengths.facts.unlearned_turns for lengths in measured.values())
    if missing:
        turns = missing + sum(lengths.facts.learned_turns for lengths in measured.values())
        warnings.append(
            f"{missing} of {turns} assistant turns are context only and not learned: in a longer"
            " conversation, the chat template renders them differently from how the model generates them."
            " Make each of them the last turn of a row of its own to learn them"
        )
    found = {split: lengths.facts.with_control_tokens for split, lengths in measured.items()}
    count = sum(each.rows for each in found.values())
    if count:
        have = "has" if count == 1 else "have"
        tokens = [token for each in found.values() for _, token in each.first]
        warnings.append(
            f"{count_of(count)} {have} a control token of the tokenizer in the text, such as"
            f" {tokens[0]} ({first_of(found)}): the model reads it as the control token."
            " Remove it, unless the text is meant to have it"
        )
    return tuple(warnings)


def check_answers(
    measured: Mapping[SplitName, TokenLengths], max_length: int, context_length: int | None, report_uri: str
) -> None:
    """Raise StageFailure (SEQUENCE_TOO_LONG) if truncation would remove the whole answer of a row."""
    lost = {split: lengths.without_answer(max_length) for split, lengths in measured.items()}
    count = sum(each.rows for each in lost.values())
    if not count:
        return
    needed = max(lengths.max_tokens for lengths in measured.values())
    longest_prompt = max(int(lengths.prompts.max(initial=0)) for lengths in measured.values())
    advice = (
        f"set hyperparameters.maxSequenceLength to {needed} to keep every row whole, or shorten the prompts"
        if context_length is None or needed <= context_length
        else f"shorten the prompts, because the context of the base model has only {context_length} tokens"
    )
    raise StageFailure(
        FailureReason.SEQUENCE_TOO_LONG,
        f"{count_of(count)} would lose the whole answer, because the prompt alone fills maxSequenceLength"
        f" {max_length} ({first_of(lost)}; the longest prompt has {longest_prompt} tokens, the longest row"
        f" {needed}); {advice}. All lengths: {report_uri}",
        ExitCode.BAD_DATA,
    )


def _found(numbers: Int64s) -> FoundRows:
    return FoundRows(len(numbers), [(int(number), "") for number in numbers[:MAX_NAMED_ROWS]])


def count_of(rows: int) -> str:
    """The number of rows, for a message."""
    return "1 row" if rows == 1 else f"{rows} rows"


def first_of(found: Mapping[SplitName, FoundRows]) -> str:
    """The first found rows of all splits, and the number of further ones, for a message."""
    names = [f"{split} row {number}" for split, each in found.items() for number, _ in each.first]
    rest = sum(each.rows for each in found.values()) - MAX_NAMED_ROWS
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:MAX_NAMED_ROWS]) + more
