"""The config of a process that removes a folder from the store."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig


class CleanupConfig(Contract):
    """Remove one folder from the store, an artifact's or a run's; that it is gone already is as good."""

    contract: int = CONTRACT_VERSION
    stage: Literal["cleanup"] = "cleanup"
    owner: Owner
    store: StoreConfig
    artifact: ArtifactRef | None = None
    run: Annotated[str | None, Field(json_schema_extra={"since": 2, "essential": True})] = None
    """Folder under `runs/`; no pod of the run is left."""
