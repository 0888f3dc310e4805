# SPDX-License-Identifier: Apache-2.0
"""The workload of both programs (the same tokens, adapter and schedule), and the time of their steps."""

import time
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import LoRA
from finetune_trainer.rows import Row
from tools.bench.example_rows import example_rows


class Stopwatch:
    """Records the end of every optimizer step of this process from its creation."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        register_optimizer_step_post_hook(self._step)

    def _step(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
        self._ends.append(time.perf_counter())

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self._ends)

    @property
    def seconds(self) -> float:
        """Time from the end of the first step to the end of the last step."""
        return self._ends[-1] - self._ends[0]


LORA: Final = LoRA()
"""Defaults of a run."""
ROWS_PER_STEP: Final = 8


def training_rows(name: str, steps: int) -> list[Row]:
    """Rows for `steps` steps; repeats the source from its first row if it is too short."""
    rows = example_rows(name)
    needed = steps * ROWS_PER_STEP
    return (rows * -(-needed // len(rows)))[:needed]


def hyperparameters(steps: int, save_every_steps: int) -> Hyperparameters:
    """Hyperparameters of one epoch with `steps` steps."""
    return Hyperparameters(
        epochs=1,
        learning_rate=5e-4,
        batch_size=ROWS_PER_STEP,
        max_sequence_length=512,
        seed=42,
        total_steps=steps,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        save_every_steps=save_every_steps,
    )
