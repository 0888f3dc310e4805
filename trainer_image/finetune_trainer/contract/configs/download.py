# SPDX-License-Identifier: Apache-2.0
"""The config of a process that puts a base model into the store for an endpoint, and its result."""

from typing import ClassVar, Literal

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest
from finetune_trainer.contract.references import Owner, SecretMount, StoreConfig


class DownloadConfig(Contract):
    """Put the base model that an endpoint serves alone into the store, unless the store has it."""

    parent: ClassVar[None] = None
    """The base model is named by its uri, not by a Checkpoint."""

    contract: int = CONTRACT_VERSION
    stage: Literal["download"] = "download"
    owner: Owner
    run: str
    """Folder under `runs/` of a download in progress: the uid of the endpoint."""
    store: StoreConfig
    base_model_uri: str
    base_model_path: str | None = None
    """Folder under `BASE_MODEL_MOUNT`; None for a model to download."""
    base_model_revision: str | None = None
    """Branch, tag or commit at the hub; None for its main branch."""
    base_model_credentials: SecretMount | None = None
    base_model_digest: Digest | None = None
    """Required digest of the files. A model of this digest that is in the store is not read again."""


class StoredModel(Contract):
    """Result of a download: the termination message of its pod."""

    digest: Digest = Field(description="Digest of the base model in the store.")
