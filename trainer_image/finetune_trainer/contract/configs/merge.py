# SPDX-License-Identifier: Apache-2.0
"""The config of a process that merges an adapter into its base model, and its result."""

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract, Digest
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig


class MergeConfig(Contract):
    """Write the base model with an adapter as bfloat16 weights, derived from the adapter's Checkpoint."""

    contract: int = CONTRACT_VERSION
    stage: Literal["merge"] = "merge"
    owner: Owner
    store: StoreConfig
    checkpoint: ArtifactRef
    """The adapter."""
    base_model: Digest
    probe: Digest | None = None
    """Digest of what the adapter predicted when it was published. None: there is no record."""


class MergedWeights(Contract):
    """Result of a merge: the termination message of its pod. Its folders are derived from the Checkpoint."""

    weights: Digest = Field(description="Digest of the merged weights.")
    probe: Digest = Field(description="Digest of what the merged weights predict.")
