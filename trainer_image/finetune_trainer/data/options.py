# SPDX-License-Identifier: Apache-2.0
"""Settings of a preparation. All of them enter a version's preparation digest."""

from dataclasses import dataclass, field

from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.vocabulary import RULE_VERSION, DataFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames(Columns):
    """Names of the fields in the source files."""

    template: str | None = None
    """Text with `{column}` for each column to insert; replaces the prompt column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of a preparation. The names of its fields enter the digest, so they never change."""

    format: DataFormat | None = None
    """None: detected by content."""
    names: FieldNames = field(default_factory=FieldNames)
    division: Split = field(default_factory=Split)
    cleaning: Cleaning = field(default_factory=Cleaning)
    checks: Checks = field(default_factory=Checks)
    kept_columns: tuple[str, ...] = ()
    """Columns of the source to keep with each row."""
    rule_version: int = RULE_VERSION
    """One of `RULE_VERSIONS`. Code whose result differs between versions compares with this number."""
