# SPDX-License-Identifier: Apache-2.0
"""One thread per process: a step of a tiny model is shorter than the wait of two threads for each other."""

from pathlib import Path

import torch

from finetune_trainer import pod_limits
from finetune_trainer.model import device


def use_one_thread() -> None:
    """Let this process and the stages in it compute with one thread, whatever the machine has."""
    torch.set_num_threads(1)
    setattr(device, pod_limits.available_processors.__name__, _one)


def _one(_: Path | None = None) -> int:
    return 1
