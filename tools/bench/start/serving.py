# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.start.serving [SIZES]: start of a serving pod, with and without the model cache."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem, FillConfig, ServeConfig
from finetune_trainer.store import open_store
from tools.bench.errors import BenchError
from tools.bench.page import PAGE
from tools.bench.start.measure import forget, seconds_of, seconds_to_first_token
from tools.bench.start.model import SIZES, random_model
from tools.bench.start.servingpage import ServingStart, sheet, write
from tools.bootstrap.uv import cache_directory

OWNER: Final = Owner(kind="InferenceDeployment", namespace="bench", name="bench", uid="bench")

app = typer.Typer(add_completion=False)


class ServedNamespace:
    """A store with one base model, a model cache that has it, and the folder of a serving pod."""

    def __init__(self, size: str, root: Path) -> None:
        self.root = root
        self.pod = root / "pod"
        self.place = StoreConfig(uri="pvc://bench", path=str(root / "store"))
        self.cache = StoreConfig(uri="pvc://cache", path=str(root / "cache"))
        for folder in (self.place, self.cache):
            Path(folder.path).mkdir()
        store = open_store(self.place)
        with store.staging() as staging:
            shutil.copytree(random_model(size), staging, dirs_exist_ok=True, copy_function=os.link)
            self.base = ArtifactRef(kind="models", digest=store.publish("models", staging))

    @property
    def fill_config(self) -> FillConfig:
        """The config of the Job that fills the cache."""
        return FillConfig(owner=OWNER, store=self.place, cache=self.cache, artifact=self.base)

    def fetch_config(self, *, in_cache: bool) -> FetchConfig:
        """The config of the init container."""
        return FetchConfig(
            owner=OWNER,
            store=self.place,
            cache=self.cache if in_cache else None,
            items=(FetchItem(artifact=self.base, folder="base", in_cache=in_cache),),
            destination=str(self.pod),
        )

    def serve_config(self, port: int) -> ServeConfig:
        """The config of the engine."""
        return ServeConfig(owner=OWNER, base_folder="base", models_path=str(self.pod), port=port)

    @property
    def weights(self) -> Sequence[Path]:
        """All files with weights, whose content a pod on another node has not read."""
        return [path for path in self.root.rglob("*.safetensors") if not path.is_symlink()]

    def start(self, *, in_cache: bool) -> ServingStart:
        """Start a pod whose node has read none of the files."""
        shutil.rmtree(self.pod, ignore_errors=True)
        forget(self.weights)
        size = sum(path.stat().st_size for path in (self.root / "store").rglob("*.safetensors"))
        readable = seconds_of(self.fetch_config(in_cache=in_cache))
        return ServingStart(size, readable, readable + self.seconds_to_first_token())

    def seconds_to_first_token(self) -> float:
        """Time from the start of the engine, whose init container has ended, until its first token."""
        return seconds_to_first_token(self.serve_config)


@app.command()
def servingbench(
    sizes: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(SIZES)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 3,
    page: Annotated[bool, typer.Option("--page", help="Replace the table in docs/benchmarks.md.")] = False,
) -> None:
    """Start a serving pod that copies its base model, and one that reads it in the model cache, in turns."""
    console = Console(highlight=False)
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    measured: dict[tuple[str, bool], list[ServingStart]] = {}
    filled: dict[str, float] = {}
    try:
        for size in sizes or SIZES:
            with TemporaryDirectory(dir=parent) as folder:
                namespace = ServedNamespace(size, Path(folder))
                forget(namespace.weights)
                filled[size] = seconds_of(namespace.fill_config)
                for turn in range(rounds):
                    with console.status(f"{size}, round {turn + 1} of {rounds}", refresh_per_second=1):
                        for in_cache in (False, True):
                            start = namespace.start(in_cache=in_cache)
                            measured.setdefault((size, in_cache), []).append(start)
    except BenchError as error:
        print(f"servingbench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    table = sheet(measured, filled, "Transformers")
    console.print(table.to_terminal())
    if page:
        write(PAGE, table)


if __name__ == "__main__":
    app()
