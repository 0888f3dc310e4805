# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that prepares rows."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_trainer.contract.base import Contract, Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.results import SourceRows
from finetune_trainer.contract.vocabulary import DataFormat, SourceSplits


class SourceConfig(Contract):
    """One source of rows, and how to read it."""

    field: str = "source"
    """Field of the spec that names the source, such as `sources[0]`, for messages."""
    uri: str
    path: str | None = None
    """File, folder of files, or path with a pattern such as `rows-*.jsonl` as its last part, under
    `SOURCES_MOUNT`; None for a source to download."""
    credentials: SecretMount | None = None
    """Secret for this source only."""
    format: DataFormat | None = None
    columns: Columns = Columns()
    splits: SourceSplits = "All"
    known_version: str | None = None
    """Version of the content that the last check read. If all sources still have theirs, there is nothing to
    do."""


class PrepareConfig(StageConfig):
    """Make a dataset folder from the rows of some sources, which are read in this order."""

    stage: Literal["prepare"] = "prepare"
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    template: str | None = None
    cleaning: Cleaning = Cleaning()
    checks: Checks = Checks()
    split: Split = Split()
    rule_version: int = 1
    """Version of the rules for reading and comparing rows, one of `RULE_VERSIONS`."""
    keep_columns: tuple[str, ...] = ()
    """Columns of the source that stay with each row, as `Row.columns`."""
    on_invalid_rows: Literal["Fail", "Drop"] = "Fail"
    max_invalid_fraction: float | None = None
    max_unpacked_bytes: int | None = None
    """Max total size of the unpacked files, and of the rows made of them. None: the trainer's own bound. Not
    part of the preparation's digest, because it does not change the rows."""
    previous: Digest | None = None
    """The Dataset's previous version, to compare with."""
    previous_sources: tuple[SourceRows, ...] = ()
    """Origin of the rows of the previous version; empty if it is unknown."""
