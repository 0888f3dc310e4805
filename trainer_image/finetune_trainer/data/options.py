# SPDX-License-Identifier: Apache-2.0
"""Settings of a preparation. All of them enter a version's preparation digest."""

from dataclasses import dataclass, field

from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat, SourceSplits


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames(Columns):
    """Names of the fields in the source files."""

    template: str | None = None
    """Text with `{column}` for each column to insert; replaces the prompt column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings for the rows of one source. The names of its fields enter the digest: they never change.

    The recipes of several sources differ only in `format`, `names` and `splits`.
    """

    format: DataFormat | None = None
    """None: detected by content."""
    names: FieldNames = field(default_factory=FieldNames)
    splits: SourceSplits = "All"
    """TrainOnly: every row is in the train split, whatever `division` says."""
    division: Split = field(default_factory=Split)
    cleaning: Cleaning = field(default_factory=Cleaning)
    checks: Checks = field(default_factory=Checks)
    kept_columns: tuple[str, ...] = ()
    """Columns of the source to keep with each row."""
    rule_version: int = RULE_VERSION
    """One of `RULE_VERSIONS`. Code whose result differs between versions compares with this number."""

    @property
    def split_column(self) -> str | None:
        """Column that names the split of each row, if any."""
        return self.division.column if self.splits == "All" else None

    @property
    def splits_by_files(self) -> bool:
        """Whether the file names give the split."""
        return self.division.from_files and self.splits == "All"
