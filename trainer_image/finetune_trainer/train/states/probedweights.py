# SPDX-License-Identifier: Apache-2.0
"""Records what weights predict when they are written, while they are in memory."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from finetune_trainer.contract.vocabulary import CheckpointType
from finetune_trainer.model.probe import PromptIds, compute_probe
from finetune_trainer.model.probe_record import ProbeRecord, write_record
from finetune_trainer.train.modelsetup import Trainable
from finetune_trainer.train.parallel.shards import reshard
from finetune_trainer.train.states.weights import TrainingWeights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbedWeights:
    """Weights that are written with their probe. All processes of a sharded model compute it together."""

    weights: TrainingWeights
    model: Trainable
    prompts: PromptIds
    """Token ids; empty to record no probe."""
    pad_token_id: int
    quantized: bool
    """Whether the base model is in 4 bits."""

    @property
    def type(self) -> CheckpointType:
        return self.weights.type

    @property
    def dtype(self) -> torch.dtype | None:
        return self.weights.dtype

    def write(self, folder: Path) -> None:
        """Write the weights, and their probe unless their predictions are not finite."""
        probe = self._measure()
        self.weights.write(folder)
        if probe is not None:
            write_record(probe, folder)
        elif self.prompts:
            logger.warning("the weights have no probe: their predictions are not finite")

    def contribute(self) -> None:
        if any(isinstance(module, FSDPModule) for module in self.model.modules()):
            self._measure()
        self.weights.contribute()

    def _measure(self) -> ProbeRecord | None:
        if not self.prompts:
            return None
        record = compute_probe(
            self.model,
            self.prompts,
            self.pad_token_id,
            stored_dtype=self.weights.dtype,
            quantized=self.quantized,
        )
        reshard(self.model)
        return record
