# SPDX-License-Identifier: Apache-2.0
"""Rows that are longer than the max sequence length: left out, truncated, or a reason to fail."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from finetune_trainer.contract.hyperparameters import MAX_DROPPED_SHARE, OnLongRows
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, SplitName
from finetune_trainer.preflight.lengths import TokenLengths, count_of, first_of
from finetune_trainer.rows import LEARNED_FROM
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.tokens.token_files import FoundRows, Int64s


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
