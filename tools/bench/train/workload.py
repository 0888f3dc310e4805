"""The workload of both programs: the same tokens, adapter and schedule."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import LoRA
from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.options import FieldNames, Recipe
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.rows import SPLIT_FILES, Row, load_rows
from tools.bootstrap.uv import ROOT

LORA: Final = LoRA()
"""Defaults of a run."""
ROWS_PER_STEP: Final = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows and the names of its fields."""

    file: Path
    names: FieldNames = field(default_factory=FieldNames)


SOURCES: Final = {
    "ticket-routing": Source(ROOT / "examples" / "ticket-routing" / "data" / "tickets.jsonl"),
    "brand-voice": Source(
        ROOT / "examples" / "brand-voice" / "data" / "products.csv",
        FieldNames(prompt="brief", completion="copy"),
    ),
}
"""Two examples: one word to learn after a message, and a text to learn after a brief."""


def training_rows(name: str, steps: int) -> list[Row]:
    """Rows for `steps` steps; repeats the source from its first row if it is too short."""
    source = SOURCES[name]
    with TemporaryDirectory() as folder:
        prepare([SourceFile(source.file)], Recipe(names=source.names), Path(folder))
        rows = load_rows(Path(folder) / SPLIT_FILES["train"])
    needed = steps * ROWS_PER_STEP
    return (rows * -(-needed // len(rows)))[:needed]


def hyperparameters(steps: int, save_every_steps: int) -> Hyperparameters:
    """Hyperparameters of one epoch with `steps` steps."""
    return Hyperparameters(
        epochs=1,
        learning_rate=5e-4,
        per_device_batch_size=ROWS_PER_STEP,
        gradient_accumulation_steps=1,
        max_sequence_length=512,
        seed=42,
        total_steps=steps,
        save_every_steps=save_every_steps,
    )
