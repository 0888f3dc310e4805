# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.start [SIZES]"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.rows import SPLIT_FILES, Row
from finetune_trainer.store import open_store
from tools.bench.page import PAGE, BenchError, Sheet, put
from tools.bench.start.measure import SIZES, forget, random_model, seconds_to_first_step, seconds_to_read
from tools.bootstrap.uv import cache_directory

BEGIN: Final = "<!-- Written by make bench-start from here -->"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the train stage."""

    bytes: int
    """Size of the weights."""
    read_seconds: float
    """Time to read the files of the weights."""
    start_seconds: float
    """Time from the start of the process to the first step."""


def sheet(measured: Mapping[str, Sequence[Start]]) -> Sheet:
    """One row per size: medians over the rounds."""
    rows = []
    for size, rounds in measured.items():
        read = median(each.read_seconds for each in rounds)
        start = median(each.start_seconds for each in rounds)
        rows.append(
            (
                size,
                f"{rounds[0].bytes / 1e9:.1f}",
                f"{read:.1f}",
                f"{start:.1f}",
                f"{start - read:.1f}",
                f"{start / read:.2f}",
            )
        )
    return Sheet(
        f"Start of the train stage, LoRA, weights not in the page cache, {len(next(iter(measured.values())))}"
        " rounds",
        (
            "",
            "weights, GB",
            "s to read them",
            "s to the first step",
            "difference, s",
            "first step relative to reading",
        ),
        tuple(rows),
    )


def write(page: Path, table: Sheet) -> None:
    """Replace the text between the markers of `page` with the table.

    Raises:
        BenchError: the page has no markers.
    """
    packages = ("torch", "transformers", "peft")
    put(page, BEGIN, [table], ", ".join(f"{package} {version(package)}" for package in packages))


OWNER: Final = Owner(kind="FineTuneJob", namespace="bench", name="bench", uid="bench")

app = typer.Typer(add_completion=False)


@app.command()
def startbench(
    sizes: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(SIZES)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each size.")] = 3,
    page: Annotated[bool, typer.Option("--page", help="Replace the table in docs/benchmarks.md.")] = False,
) -> None:
    """Start the train stage on base models that are not in the page cache, and read their files, in turns."""
    console = Console(highlight=False)
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[Start]] = {}
    try:
        for size in sizes or SIZES:
            with TemporaryDirectory(dir=parent) as folder:
                config, files = _run_of(size, Path(folder))
                for turn in range(rounds):
                    with console.status(f"{size}, round {turn + 1} of {rounds}", refresh_per_second=1):
                        read = seconds_to_read(files)
                        forget(files)
                        # A run that starts again and again without progress is refused.
                        run = config.model_copy(update={"run": f"bench-{turn}"})
                        measured.setdefault(size, []).append(
                            Start(
                                bytes=sum(file.stat().st_size for file in files),
                                read_seconds=read,
                                start_seconds=seconds_to_first_step(run, {"HF_HOME": folder}),
                            )
                        )
    except BenchError as error:
        print(f"startbench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    table = sheet(measured)
    console.print(table.to_terminal())
    if page:
        write(PAGE, table)


def _run_of(size: str, folder: Path) -> tuple[TrainConfig, list[Path]]:
    """The config of a run of one step, and the files of its base model in the store."""
    place = StoreConfig(uri="pvc://bench", path=str(folder / "store"))
    (folder / "store").mkdir()
    store = open_store(place)
    with store.staging() as staging:
        shutil.copytree(random_model(size), staging, dirs_exist_ok=True, copy_function=os.link)
        model = store.publish("models", staging)
    with store.staging() as staging:
        (staging / SPLIT_FILES["train"]).write_text(f"{Row.pair('late order?', 'shipping').to_line()}\n")
        data = store.publish("datasets", staging)
    config = TrainConfig(
        owner=OWNER,
        run="bench",
        store=place,
        base_model=model,
        dataset=data,
        hyperparameters=Hyperparameters(
            epochs=1,
            learning_rate=1e-4,
            batch_size=1,
            max_sequence_length=64,
            seed=42,
            total_steps=1,
            warmup_ratio=0.05,
            scheduler="Linear",
            weight_decay=0,
            save_every_steps=1,
        ),
        metrics_port=0,
    )
    return config, sorted((folder / "store" / "models").rglob("*.safetensors"))


if __name__ == "__main__":
    app()
