# SPDX-License-Identifier: Apache-2.0
"""Settings of a preparation. All of them enter a version's preparation digest."""

from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.vocabulary import DataFormat, SourceSplits

OLDEST_RULE: Final = 1
"""First version of the rules by which rows are read and compared; the newest is RULE_VERSION.

A Dataset keeps the version that it started with, so a new release neither reads a label differently nor moves
a row:

1. Labels in JSON are KTO labels if they are true or false. Near duplicates are found by word trigrams.
2. KTO labels can also be "true", "false", 1 and 0. If a label may rate an answer, the format must be set.
   Prompts and completions can be lists of messages. Preferences as in OpenAI's API and Label Studio's tasks
   for generative AI are read. Short texts are near duplicates if all their words are equal. Inputs that look
   the same are equal, regardless of case, punctuation at the ends of words, Unicode form, invisible
   characters and whitespace.
"""
RATINGS_SINCE: Final = 2
"""First version that reads labels in JSON as in tables."""
MESSAGES_SINCE: Final = 2
"""First version that reads prompts and completions as lists of messages, and recognizes more tool exports."""
VISIBLE_TEXT_SINCE: Final = 2
"""First version that compares rows as a reader sees them, and short texts as a whole."""


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

    @property
    def split_column(self) -> str | None:
        """Column that names the split of each row, if any."""
        return self.division.column if self.splits == "All" else None

    @property
    def splits_by_files(self) -> bool:
        """Whether the file names give the split."""
        return self.division.from_files and self.splits == "All"
