"""What is asked of a preparation; everything here is part of a version's preparation digest."""

from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.contract.vocabulary import DataFormat, Finding, NearDuplicates

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
JUDGED_SINCE: Final = 2
"""Labels in JSON are read as in tables."""
MESSAGES_SINCE: Final = 2
"""Prompts and completions may be lists of messages, and more exports of tools are known by their content."""
SEEN_SINCE: Final = 2
"""Rows are compared as a reader sees them, short ones whole."""

NEAR_DUPLICATE_ROWS: Final = 200_000
"""Near duplicates are looked for up to so many rows: beyond it memory would grow past a gibibyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames:
    """Names in the file; None: the format's usual one."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None
    template: str | None = None
    """A text with `{column}` for each column that it takes; stands in place of the prompt column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How rows are divided: by a hash, or as the team divided them already."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_by: str | None = None
    column: str | None = None
    """Column that says train, validation or test."""
    from_files: bool = False
    """The files' names say it: train.jsonl, validation.jsonl, test.jsonl."""
    rule_version: int = OLDEST_RULE
    """From OLDEST_RULE to RULE_VERSION."""

    @property
    def is_given(self) -> bool:
        """Whether the team divided the rows."""
        return self.from_files or self.column is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """Changes made to rows after they were divided. Exact duplicates and leaked rows are always left out."""

    normalize_whitespace: bool = False
    normalize_unicode: bool = False
    near_duplicates: NearDuplicates = "Keep"
    max_rows_for_near_duplicates: int = NEAR_DUPLICATE_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What is looked for in texts."""

    secrets: Finding = "Warn"
    email_addresses: Finding = "Off"
    payment_cards: Finding = "Warn"
    ibans: Finding = "Warn"
    phone_numbers: Finding = "Off"
    phone_region: str | None = None
    """Two-letter country of numbers without a country code; None: only numbers with one are found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All of it."""

    format: DataFormat | None = None
    """None: found by the content."""
    names: FieldNames = field(default_factory=FieldNames)
    division: Division = field(default_factory=Division)
    cleaning: Cleaning = field(default_factory=Cleaning)
    checks: Checks = field(default_factory=Checks)
