# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that prepares rows."""

from typing import Literal

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import DataFormat


class PrepareConfig(StageConfig):
    """Make a dataset folder from the rows of a source."""

    stage: Literal["prepare"] = "prepare"
    source_uri: str
    source_path: str | None = None
    """File, folder of files, or path with a pattern such as `rows-*.jsonl` as its last part, under
    `SOURCE_MOUNT`; None for a source to download."""
    source_credentials: SecretMount | None = None
    format: DataFormat | None = None
    columns: Columns = Columns()
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
    unless_version: str | None = None
    """Version of the source for which there is nothing to do."""
