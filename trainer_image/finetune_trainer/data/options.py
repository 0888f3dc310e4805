"""What is asked of a preparation; everything here is part of a version's preparation digest."""

from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.vocabulary import DataFormat

OLDEST_RULE: Final = 1
"""Versions of the rules by which rows are read and compared, up to RULE_VERSION. A Dataset keeps the one that
it began with, so that a new release reads no label otherwise and moves no row:

1. Labels in JSON are those of KTO where they are true or false. Near duplicates are told by word triples.
2. Labels of KTO are also "true", "false", 1 and 0; where a label may judge an answer, nothing is guessed.
   Prompts and completions may be lists of messages; preferences as in OpenAI's API and the tasks of Label
   Studio for generative AI are read. Short texts are near duplicates where all their words are the same.
   Inputs that a reader sees as the same are the same, whatever their Unicode form, invisible characters and
   blanks.
"""
RATINGS_SINCE: Final = 2
"""Labels in JSON are read as in tables."""
MESSAGES_SINCE: Final = 2
"""Prompts and completions may be lists of messages, and more exports of tools are known by their content."""
VISIBLE_TEXT_SINCE: Final = 2
"""Rows are compared as a reader sees them, short ones whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames(Columns):
    """Names of the fields in the files."""

    template: str | None = None
    """A text with `{column}` for each column that it takes; replaces the prompt column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All of it."""

    format: DataFormat | None = None
    """None: found by the content."""
    names: FieldNames = field(default_factory=FieldNames)
    division: Split = field(default_factory=Split)
    cleaning: Cleaning = field(default_factory=Cleaning)
    checks: Checks = field(default_factory=Checks)
