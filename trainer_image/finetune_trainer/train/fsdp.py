# SPDX-License-Identifier: Apache-2.0
"""Full training with the weights sharded across the processes of a run: PyTorch's FSDP2.

Each process holds its rows of every layer with their gradients and optimizer state, and gathers a layer only
while it is computed. Checkpoints are those of one process.
"""

from pathlib import Path

import torch
from typing_extensions import override

from finetune_trainer.model.device import return_freed_memory
from finetune_trainer.train.parallel.shards import load_optimizer, load_weights
from finetune_trainer.train.states.pendingsave import StateSnapshot
from finetune_trainer.train.states.snapshot import collect_sharded
from finetune_trainer.train.trainer import CompletionTrainer

COPIES_ON_CPU = False
"""Whether a state is copied before it is written also on a CPU, for tests."""


class FullyShardedTrainer(CompletionTrainer):
    """Trains a model that was sharded when it was loaded."""

    reduces_each_batch = True  # gradients that wait for the last batch are not sharded

    @override
    def collect_state(self) -> StateSnapshot:
        return_freed_memory()  # of the step, since the limit of a pod counts it while the files are written
        # On a CPU a copy would need the memory of model and optimizer once more.
        copies = self.args.device.type != "cpu" or COPIES_ON_CPU
        return collect_sharded(self, self._trained, self._group, copies=copies)

    @override
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        load_weights(self._trained, Path(resume_from_checkpoint))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self, self._trained, Path(checkpoint))
