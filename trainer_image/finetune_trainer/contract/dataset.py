"""How rows are read, divided, cleaned and checked: the settings of a Dataset, in one place for both sides.

Dataclasses without pydantic, so that rows can be prepared without it; as fields of a config they are
validated and written by its rules. A field that an older contract does not know has `since` in its metadata.
Every field is part of the preparation's digest unless it has its default.
"""

from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.contract.vocabulary import Finding, NearDuplicates

MAX_ROWS_FOR_NEAR_DUPLICATES: Final = 200_000
"""Near duplicates are searched in at most this many rows. With more, memory would exceed 1 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column or JSON field holds what. None: the usual name of the format."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How rows are divided: by a hash into fractions, or as the rows or the files say themselves."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_by: str | None = None
    column: str | None = None
    """Column that says train, validation or test."""
    from_files: bool = False
    """The names of the files say it: train.jsonl, validation.jsonl, test.jsonl."""
    rule_version: int = field(default=1, metadata={"since": 2})
    """Of the rules by which rows are read and compared, up to `RULE_VERSION`."""

    @property
    def is_given(self) -> bool:
        """Whether the user divided the rows already."""
        return self.from_files or self.column is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """Changes made to rows after they were divided. Exact duplicates and leaked rows are always left out."""

    normalize_whitespace: bool = False
    normalize_unicode: bool = False
    near_duplicates: NearDuplicates = "Keep"
    max_rows_for_near_duplicates: int = MAX_ROWS_FOR_NEAR_DUPLICATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What is searched in texts, and what happens to a row that has it."""

    secrets: Finding = "Warn"
    email_addresses: Finding = "Off"
    payment_cards: Finding = "Warn"
    ibans: Finding = "Warn"
    phone_numbers: Finding = "Off"
    phone_region: str | None = None
    """Two-letter country of numbers without a country code; None: only numbers with one are found."""
