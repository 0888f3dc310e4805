# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.memory [--page]"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import CONFIG_ENV, NODE_RANK_ENV
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.distributed.process_group import PORT_ENV
from finetune_trainer.rows import SPLIT_FILES, Row
from finetune_trainer.store import ArtifactKind, Store, open_store
from tools.bench.errors import BenchError
from tools.bench.memory.model import random_model
from tools.bench.memory.page import PHASES, Peaks, problems, sheet, write
from tools.bench.memory.rank import STOP_ENV
from tools.bench.page import PAGE
from tools.bootstrap.uv import ROOT, cache_directory

PROCESSES: Final = 4
STEPS: Final = 3
OWNER: Final = Owner(kind="FineTuneJob", namespace="bench", name="bench", uid="bench")

app = typer.Typer(add_completion=False)


@app.command()
def memorybench(
    page: Annotated[bool, typer.Option("--page", help="Replace the table in docs/benchmarks.md.")] = False,
) -> None:
    """Train 300 million parameters in four processes, stop after a save, resume, and publish.

    Exit code 1: a process had more memory in a phase than 1.3 times its share of weights and optimizer state
    and 300 MiB, above its memory after the imports.
    """
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    try:
        with TemporaryDirectory(dir=parent) as folder, console.status("training", refresh_per_second=1):
            peaks = _measure(Path(folder))
    except BenchError as error:
        print(f"memorybench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    table = sheet(peaks)
    console.print(table.to_terminal())
    if page:
        write(PAGE, table)
    if found := problems(peaks):
        print(f"memorybench: {'; '.join(found)}", file=sys.stderr)
        raise typer.Exit(1)


def _measure(folder: Path) -> Peaks:
    """Run twice: until a stop after the first save, and to the end."""
    config = _config(folder)
    _run(config, folder / "first", {STOP_ENV: "1"}, ExitCode.PREEMPTED_SAVED)
    _run(config, folder / "second", {}, ExitCode.OK)
    ranks = [_lines(folder, rank) for rank in range(PROCESSES)]
    return {phase: [_peak(phase, lines) for lines in ranks] for phase in PHASES}


def _peak(phase: str, lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max((each for each in lines if each["phase"] == phase), key=lambda each: each["bytes"])


def _lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    files = [folder / name / f"rank-{rank}.jsonl" for name in ("first", "second")]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _run(config: TrainConfig, folder: Path, more: Mapping[str, str], code: ExitCode) -> None:
    folder.mkdir()
    port = _free_port()
    started = []
    for rank in range(PROCESSES):
        environ = {CONFIG_ENV: config.to_json(), NODE_RANK_ENV: str(rank), PORT_ENV: str(port), **more}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tools.bench.memory.rank", str(folder)],
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **environ},
                stdout=(folder / f"rank-{rank}.log").open("wb"),
            )
        )
    codes = [each.wait() for each in started]
    if codes != [code] * PROCESSES:
        log = (folder / "rank-0.log").read_text()[-2000:]
        raise BenchError(f"the processes ended with {codes}, not with {code}: {log}")


def _config(folder: Path) -> TrainConfig:
    place = StoreConfig(uri="pvc://bench", path=str(folder / "store"))
    (folder / "store").mkdir()
    store = open_store(place)
    key = folder / "peer-key"
    key.write_bytes(bytes(range(32)))
    rows = [Row.pair("late order?", "shipping")] * (PROCESSES * STEPS)
    return TrainConfig(
        owner=OWNER,
        run="bench",
        store=place,
        base_model=_publish(store, "models", random_model()),
        dataset=_dataset(store, rows),
        method=Method(type="Full"),
        hyperparameters=Hyperparameters(
            epochs=1,
            learning_rate=1e-5,
            batch_size=PROCESSES,
            processes=PROCESSES,
            max_sequence_length=64,
            seed=42,
            total_steps=STEPS,
            warmup_ratio=0.05,
            scheduler="Linear",
            weight_decay=0,
            save_every_steps=1,
        ),
        metrics_port=0,
        nodes=PROCESSES,
        coordinator="localhost",
        peer_key_path=str(key),
    )


def _publish(store: Store, kind: ArtifactKind, folder: Path) -> str:
    with store.staging() as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        return store.publish(kind, staging)


def _dataset(store: Store, rows: Sequence[Row]) -> str:
    with store.staging() as staging:
        (staging / SPLIT_FILES["train"]).write_text("".join(f"{row.to_line()}\n" for row in rows))
        return store.publish("datasets", staging)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    app()
