# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.start [SIZES]"""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.rows import SPLIT_FILES, Row
from finetune_trainer.store import open_store
from tools.bench.errors import BenchError
from tools.bench.page import PAGE
from tools.bench.start.measure import forget, seconds_to_first_step, seconds_to_read
from tools.bench.start.model import SIZES, random_model
from tools.bench.start.page import Start, sheet, write
from tools.bootstrap.uv import cache_directory

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
                        measured.setdefault(size, []).append(
                            Start(
                                bytes=sum(file.stat().st_size for file in files),
                                read_seconds=read,
                                start_seconds=seconds_to_first_step(config, {"HF_HOME": folder}),
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
