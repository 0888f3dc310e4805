"""The config of the stage that prepares rows."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import DataFormat


class PrepareConfig(StageConfig):
    """Rows in, a dataset folder out."""

    stage: Literal["prepare"] = "prepare"
    source_uri: str
    source_path: str | None = None
    """File, folder of files, or a pattern such as `rows-*.jsonl` in its last part, under `SOURCE_MOUNT`; None
    for a source that is read over the network."""
    source_credentials: SecretMount | None = None
    format: DataFormat | None = None
    columns: Columns = Columns()
    template: str | None = None
    cleaning: Cleaning = Cleaning()
    checks: Checks = Checks()
    split: Split = Split()
    on_invalid_rows: Literal["Fail", "Drop"] = "Fail"
    max_invalid_fraction: float | None = None
    max_unpacked_bytes: Annotated[int | None, Field(json_schema_extra={"since": 2, "essential": True})] = None
    """Of the unpacked files together, and of the rows made of them; None: the trainer's own bound. No part of
    the preparation's digest: it decides whether there are rows, and not which."""
    previous: Digest | None = None
    """The Dataset's version before, to be compared with."""
    unless_version: str | None = None
    """Of the source; as long as it has this version there is nothing to do."""
