# SPDX-License-Identifier: Apache-2.0
"""Lengths of rows in tokens: measured, checked against the max sequence length, and reported.

Rows that are longer than the max sequence length are left out, truncated, or a reason to fail. The report is
in the run's folder, as JSON and as a page.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from finetune_trainer.contract.hyperparameters import MAX_DROPPED_SHARE, OnLongRows
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, SplitName
from finetune_trainer.data.statistics import lengths as describe_lengths
from finetune_trainer.report.document import encode
from finetune_trainer.report.html_page import token_page
from finetune_trainer.rows import LEARNED_FROM
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder
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


def row_warnings(measured: Mapping[SplitName, TokenLengths]) -> tuple[str, ...]:
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


@dataclass(frozen=True)
class LongRows:
    """The long rows of training and validation, which may be left out, and those to evaluate."""

    lengths: Mapping[SplitName, TokenLengths]
    """Of all splits."""
    max_length: int
    requested: OnLongRows | None
    evaluated: str = "the test split"
    """What has the rows that are evaluated, for messages."""

    @property
    def found(self) -> dict[SplitName, FoundRows]:
        """The long rows of training and validation."""
        return {split: self.lengths[split].longer(self.max_length) for split in LEARNED_FROM}

    @property
    def truncated_splits(self) -> list[SplitName]:
        """Splits whose long rows are truncated."""
        return [split for split in self.lengths if self.truncates or split not in LEARNED_FROM]

    @property
    def truncates(self) -> bool:
        """Whether rows are truncated instead of left out."""
        return self.requested == "Truncate"

    @property
    def dropped(self) -> int:
        """Number of rows that are left out."""
        return 0 if self.truncates else _rows(self.found)

    @property
    def dropped_share(self) -> float:
        """Share of the rows of training and validation that are left out."""
        return self.dropped / sum(len(self.lengths[split].whole) for split in LEARNED_FROM)

    @property
    def resolved(self) -> OnLongRows | None:
        """What the run records; None if no row is left out."""
        return "Drop" if self.dropped else None

    @property
    def truncated(self) -> int:
        """Number of rows that are truncated."""
        return _rows({split: self.lengths[split].longer(self.max_length) for split in self.truncated_splits})

    @property
    def used_lengths(self) -> Int64s:
        """Numbers of tokens of the training rows that are used, as they are used."""
        whole = self.lengths["train"].whole
        return whole[whole <= self.max_length] if self.dropped else np.minimum(whole, self.max_length)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of rows that are left out or truncated."""
        warnings = []
        if self.dropped:
            verb = "has" if self.dropped == 1 else "have"
            warnings.append(
                f"{count_of(self.dropped)} of training and validation ({self.dropped_share:.1%}) {verb} more"
                f" than {self.max_length} tokens and will not be used ({first_of(self.found)}). To use them,"
                f" set hyperparameters.maxSequenceLength to {self._needed}, or dataset.onLongRows to Truncate"
            )
        if self.truncated and not self.truncates:
            verb = "has" if self.truncated == 1 else "have"
            warnings.append(
                f"{count_of(self.truncated)} of {self.evaluated} {verb} more than {self.max_length} tokens,"
                " and evaluation truncates what is beyond"
            )
        return tuple(warnings)

    def check(self, context_length: int | None, report_uri: str) -> None:
        """Raise StageFailure (SEQUENCE_TOO_LONG) if rows are too long for the run.

        These are: any row with Fail; more than a tenth of the rows if the user set nothing; a whole split.
        """
        if not self.dropped:
            return
        has_rest = all(
            each.rows < len(self.lengths[split].whole) or not each.rows for split, each in self.found.items()
        )
        is_much = self.requested is None and self.dropped_share > MAX_DROPPED_SHARE
        if has_rest and not is_much and self.requested != "Fail":
            return
        raise StageFailure(
            FailureReason.SEQUENCE_TOO_LONG,
            f"{count_of(self.dropped)} of training and validation ({self.dropped_share:.1%}) are longer than"
            f" maxSequenceLength {self.max_length} ({first_of(self.found)}); the longest has {self._needed}"
            f" tokens; {self._advice(context_length)}. All lengths: {report_uri}",
            ExitCode.BAD_DATA,
        )

    @property
    def _needed(self) -> int:
        """Tokens of the longest row of training and validation."""
        return max(self.lengths[split].max_tokens for split in LEARNED_FROM)

    def _advice(self, context_length: int | None) -> str:
        if context_length is not None and self._needed > context_length:
            return (
                f"the context of the base model has only {context_length} tokens: shorten the rows, or set"
                " dataset.onLongRows to Drop or Truncate"
            )
        whole = np.concatenate([self.lengths[split].whole for split in LEARNED_FROM])
        most = int(np.quantile(whole, 1 - MAX_DROPPED_SHARE, method="higher"))
        return (
            f"set hyperparameters.maxSequenceLength to {self._needed} to use all rows, or to {most} to use"
            f" {1 - MAX_DROPPED_SHARE:.0%} of them, or set dataset.onLongRows to Drop or Truncate"
        )


def _rows(found: Mapping[SplitName, FoundRows]) -> int:
    return sum(each.rows for each in found.values())


REPORT_NAME: Final = "tokens.json"
PAGE_NAME: Final = "tokens.html"
VERSION: Final = 1
MAX_LONGEST_ROWS: Final = 10
"""Max rows that the report names."""


def token_report(model: str, long_rows: LongRows) -> dict[str, Any]:
    """The report of measured rows, in JSON types. Rows are counted from 1."""
    splits, max_length = long_rows.lengths, long_rows.max_length
    whole = np.concatenate([lengths.whole for lengths in splits.values()])
    distribution = dataclasses.asdict(describe_lengths(whole.astype(np.uint32)))
    return {
        "version": VERSION,
        "baseModel": model,
        "maxSequenceLength": max_length,
        "rows": len(whole),
        "cutRows": long_rows.truncated,
        "droppedRows": long_rows.dropped,
        "lostAnswers": sum(
            splits[split].without_answer(max_length).rows for split in long_rows.truncated_splits
        ),
        "learnedTurns": sum(lengths.facts.learned_turns for lengths in splits.values()),
        "unlearnedTurns": sum(lengths.facts.unlearned_turns for lengths in splits.values()),
        "lengths": distribution,
        "longest": [
            {"split": split, "row": row + 1, "tokens": tokens} for tokens, split, row in _longest(splits)
        ],
    }


def _longest(splits: Mapping[SplitName, TokenLengths]) -> list[tuple[int, SplitName, int]]:
    """Tokens, split and index of the longest rows; of equal ones the first."""
    candidates = [
        (int(lengths.whole[row]), split, int(row))
        for split, lengths in splits.items()
        for row in np.argsort(-lengths.whole, kind="stable")[:MAX_LONGEST_ROWS]
    ]
    return sorted(candidates, key=lambda row: -row[0])[:MAX_LONGEST_ROWS]


def write_token_report(folder: RunFolder, report: dict[str, Any]) -> str:
    """Write the report and return the page's URI. Raises StageFailure (STORE_UNAVAILABLE)."""
    folder.write(REPORT_NAME, encode(report))
    folder.write(PAGE_NAME, token_page(report).encode())
    return f"{folder.uri}/{PAGE_NAME}"
