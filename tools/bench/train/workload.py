# SPDX-License-Identifier: Apache-2.0
"""The workload of both programs: the same tokens, adapter and schedule."""

from typing import Final

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import LoRA
from finetune_trainer.rows import Row
from tools.bench.examplerows import example_rows

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
