# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.start.serving [SIZES]: start of a serving pod, with and without the model cache."""

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

from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem, FillConfig, ServeConfig
from finetune_trainer.store import open_store
from tools.bench.page import PAGE, BenchError, Sheet, put
from tools.bench.start.measure import SIZES, forget, random_model, seconds_of, seconds_to_first_token
from tools.bootstrap.uv import cache_directory

BEGIN: Final = "<!-- Written by make bench-model-cache from here -->"


@dataclass(frozen=True, slots=True)
class ServingStart:
    """One start of a serving pod."""

    bytes: int
    """Size of the weights."""
    readable_seconds: float
    """Time from the start of the init container until the engine can read verified weights."""
    token_seconds: float
    """Time from the start of the init container until the first token."""


def sheet(
    measured: Mapping[tuple[str, bool], Sequence[ServingStart]], filled: Mapping[str, float], engine: str
) -> Sheet:
    """One row per size and kind of start: medians over the rounds.

    Args:
        measured: the starts by size, and whether the model is in the cache.
        filled: seconds to fill the cache, by size.
        engine: that of the pods.
    """
    rows = []
    for (size, in_cache), starts in measured.items():
        readable = median(each.readable_seconds for each in starts)
        copied = median(each.readable_seconds for each in measured[size, False])
        rows.append(
            (
                f"{size}, {'read in the cache' if in_cache else 'copied'}",
                f"{starts[0].bytes / 1e9:.1f}",
                f"{filled[size]:.1f}" if in_cache else "",
                f"{readable:.2f}",
                f"{copied / readable:.1f}" if in_cache else "1.0",
                f"{median(each.token_seconds for each in starts):.1f}",
            )
        )
    return Sheet(
        f"Start of a serving pod, engine {engine}, {len(next(iter(measured.values())))} rounds",
        (
            "",
            "weights, GB",
            "s to fill the cache, once",
            "s until verified weights are readable",
            "times faster",
            "s to the first token",
        ),
        tuple(rows),
    )


def write(page: Path, table: Sheet) -> None:
    """Replace the text between the markers of `page` with the table.

    Raises:
        BenchError: the page has no markers.
    """
    packages = ("torch", "transformers", "safetensors")
    put(page, BEGIN, [table], ", ".join(f"{package} {version(package)}" for package in packages))


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
