# SPDX-License-Identifier: Apache-2.0
"""Prepared training rows of two examples."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import FieldNames, Recipe
from finetune_trainer.rows import SPLIT_FILES, Row, load_rows
from tools.bootstrap.uv import ROOT


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


def example_rows(name: str) -> list[Row]:
    """The rows of the train split, in order."""
    source = SOURCES[name]
    with TemporaryDirectory() as folder:
        prepare([SourceFile(source.file)], Recipe(names=source.names), Path(folder))
        return load_rows(Path(folder) / SPLIT_FILES["train"])
