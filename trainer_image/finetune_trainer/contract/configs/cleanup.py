# SPDX-License-Identifier: Apache-2.0
"""The config of a process that removes a folder from the store."""

from typing import Literal

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig


class CleanupConfig(Contract):
    """Remove one folder from the store, of an artifact or a run. Succeeds if the folder is already gone."""

    contract: int = CONTRACT_VERSION
    stage: Literal["cleanup"] = "cleanup"
    owner: Owner
    store: StoreConfig
    artifact: ArtifactRef | None = None
    run: str | None = None
    """Folder under `runs/`. The run has no pods any more."""
