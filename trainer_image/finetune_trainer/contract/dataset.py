# SPDX-License-Identifier: Apache-2.0
"""Settings of a Dataset for both sides: how rows are read, split, cleaned and checked.

These are dataclasses without pydantic, so that rows can be prepared without it. As fields of a config they
are validated and serialized by its rules. Every field is part of the preparation's digest unless it has its
default.
"""

from dataclasses import dataclass

from finetune_trainer.contract.vocabulary import Finding, NearDuplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Name of the column or JSON field of each part of a row. None: the format's usual name."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How rows are split: by a hash into fractions, or by a column or the file names."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_by: str | None = None
    column: str | None = None
    """Column with the values train, validation and test."""
    from_files: bool = False
    """Whether the file names give the split: train.jsonl, validation.jsonl, test.jsonl."""

    @property
    def is_given(self) -> bool:
        """Whether the source gives the split of each row."""
        return self.from_files or self.column is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """Changes to rows after the split. Exact duplicates and leaked rows are always removed."""

    normalize_whitespace: bool = False
    normalize_unicode: bool = False
    near_duplicates: NearDuplicates = "Keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What to search for in texts, and what to do with a row that contains it."""

    secrets: Finding = "Warn"
    email_addresses: Finding = "Off"
    payment_cards: Finding = "Warn"
    ibans: Finding = "Warn"
    phone_numbers: Finding = "Off"
    phone_region: str | None = None
    """Two-letter country of numbers without a country code. None: find only numbers with a country code."""
