# SPDX-License-Identifier: Apache-2.0
"""python -m tools.peers.serving [STEPS]"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from tools.bench.page import PAGE, BenchError, Sheet
from tools.bench.start.measure import forget
from tools.bootstrap.uv import ROOT, cache_directory
from tools.cluster import gateway_api
from tools.cluster.linux_namespaces import isolated
from tools.cluster.toolchain import ensure
from tools.peers import vllm, vllmimage
from tools.peers.serving import cachestart, rollouts, service
from tools.peers.serving.page import (
    STREAMS,
    Ratio,
    mean_ratio,
    overhead_sheet,
    pairs_of,
    product,
    rollouts_sheet,
    speeds_sheet,
    starts_sheet,
    write,
)
from tools.peers.serving.servers import RunningServer, ServerCommand, ServersFolder, running
from tools.peers.serving.streams import StreamsPair, StreamsResult, alternating, measure
from tools.peers.toolchain import TRAEFIK

MIDDLEWARE: Final = "the middleware"
MIN_RATIO: Final = 0.98
"""Minimum of the tokens per second with all that an endpoint adds, relative to those without."""
ROUNDS: Final = 3
"""Rollouts of each strategy."""
TOKENS: Final = {1: 64, 8: 32, 32: 16}
"""Max tokens of an answer, by the number of streams."""
ALONE: Final = "vLLM alone"
SERVING_CLUSTER: Final = "serving"
PARTS: Final = ("starts", "speeds", "compared", "rollouts", "cachestarts")
Recorded = dict[str, Any]
"""Some of PARTS."""

app = typer.Typer(add_completion=False)


@app.command()
def servingbench(
    steps: Annotated[list[str] | None, typer.Argument(help="Default: those without a record.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Alternating pairs of the middleware.")] = 10,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/benchmarks.md.")] = False,
) -> None:
    """Measure how fast servers start and generate, and what the middleware costs. Keeps each step's result.

    Exit code 1: with all that an endpoint adds, vLLM generates less than 98 % of the tokens per second alone.
    """
    console = Console(highlight=False)
    if unknown := set(steps or ()) - STEPS.keys():
        raise typer.BadParameter(f"no step {', '.join(sorted(unknown))}: choose from {', '.join(STEPS)}")
    try:
        vllm.install()
        for name in steps or [each for each in STEPS if not _record(each).exists()]:
            console.print(f"step {name} …")
            _record(name).write_text(json.dumps(STEPS[name](console, pairs)))
        found = {name: json.loads(_record(name).read_text()) for name in STEPS if _record(name).exists()}
        sheets = _sheets(found)
        for sheet in sheets:
            console.print(sheet.to_terminal())
        if page:
            write(PAGE, sheets)
        _check(found)
    except BenchError as error:
        print(f"servingbench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _vllm(console: Console, pairs: int) -> Recorded:
    """vLLM with the middleware, and past it in the same process."""
    with _folder() as folder:
        command = folder.vllm()
        starts = {command.name: {"cold": _cold(folder, command)}}
        with running(command, folder.path) as server:
            starts[command.name]["warm"] = server.start_seconds
            alone = server.past_the_middleware()
            speeds = {command.name: _speeds(server), ALONE: _speeds(alone)}
            console.print(f"{pairs} pairs with and without the middleware")
            measured = alternating(alone, server, pairs)
    compared = {MIDDLEWARE: [[asdict(each) for each in pair] for pair in measured]}
    return {"starts": starts, "speeds": speeds, "compared": compared}


def _built_in(console: Console, _: int) -> Recorded:
    """The built-in engine, and the server of transformers."""
    starts, speeds = {}, {}
    with _folder() as folder:
        for command in (folder.built_in(), folder.transformers_serve()):
            console.print(command.name)
            starts[command.name] = {"cold": _cold(folder, command)}
            with running(command, folder.path) as server:
                starts[command.name]["warm"] = server.start_seconds
                speeds[command.name] = _speeds(server)
    return {"starts": starts, "speeds": speeds}


def _service(console: Console, pairs: int) -> Recorded:
    """vLLM in a pod: its address, the Service of its endpoint, and a gateway."""
    vllmimage.install()
    ensure((TRAEFIK,))
    gateway_api.definitions()
    return {"compared": _on_cluster(console, service.__name__, pairs)}


def _rollouts(console: Console, _: int) -> Recorded:
    """Rollouts of an endpoint by each strategy."""
    return {"rollouts": _on_cluster(console, rollouts.__name__, ROUNDS)}


def _model_cache(console: Console, _: int) -> Recorded:
    """Pods of vLLM with the model cache and without it."""
    console.print("pods that copy their model, and pods that read it in the cache")
    with _scratch() as folder:
        return {"cachestarts": {"vLLM": cachestart.measure_starts(folder)}}


def _on_cluster(console: Console, module: str, number: int) -> Any:
    """What a module prints that runs on a cluster of its own."""
    console.print("a cluster of its own")
    command = isolated([sys.executable, "-m", module, str(number)], SERVING_CLUSTER)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{module} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


STEPS: Final[Mapping[str, Callable[[Console, int], Recorded]]] = {
    "vllm": _vllm,
    "built-in": _built_in,
    "service": _service,
    "rollouts": _rollouts,
    "model-cache": _model_cache,
}
"""The steps; each takes about five minutes on two idle cores."""


def _cold(folder: ServersFolder, command: ServerCommand) -> float:
    """Seconds from a start to the first token, with the weights not in the page cache."""
    forget(folder.weights())
    with running(command, folder.path) as server:
        return server.start_seconds


def _speeds(server: RunningServer) -> dict[int, dict[str, float]]:
    measure(server, STREAMS[-1], 2)
    return {streams: asdict(measure(server, streams, TOKENS[streams])) for streams in STREAMS}


def _sheets(found: Mapping[str, Recorded]) -> list[Sheet]:
    merged: Recorded = {
        part: {name: value for step in found.values() for name, value in step.get(part, {}).items()}
        for part in PARTS
    }
    rates = {
        name: {int(streams): StreamsResult(**each) for streams, each in value.items()}
        for name, value in merged["speeds"].items()
    }
    compared = _compared(found)
    sheets = [starts_sheet(merged["starts"]), speeds_sheet(rates)]
    if compared:
        sheets.append(overhead_sheet(compared, _together(compared)))
    if merged["rollouts"]:
        sheets.append(rollouts_sheet(merged["rollouts"]))
    sheets += map(cachestart.starts_sheet, merged["cachestarts"].values())
    return [each for each in sheets if each.rows]


def _compared(found: Mapping[str, Recorded]) -> dict[str, list[StreamsPair]]:
    return {
        name: pairs_of(pairs) for step in found.values() for name, pairs in step.get("compared", {}).items()
    }


def _together(compared: Mapping[str, Sequence[StreamsPair]]) -> dict[str, Ratio]:
    """Ratio of the middleware and each other way."""
    if MIDDLEWARE not in compared:
        return {}
    others = {name: pairs for name, pairs in compared.items() if name != MIDDLEWARE}
    return {
        f"{MIDDLEWARE} and {name}": product(compared[MIDDLEWARE], pairs) for name, pairs in others.items()
    }


def _check(found: Mapping[str, Recorded]) -> None:
    compared = _compared(found)
    ratios = {name: mean_ratio(pair.ratio for pair in pairs) for name, pairs in compared.items()}
    for name, each in {**ratios, **_together(compared)}.items():
        if each.mean < MIN_RATIO:
            raise BenchError(f"with {name}, {each} times the tokens per second; the target is {MIN_RATIO}")


@contextmanager
def _folder() -> Iterator[ServersFolder]:
    """A temporary folder with the model."""
    with _scratch() as path:
        yield ServersFolder.made_in(path)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder on the disk of the cache, which has the models."""
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent) as name:
        yield Path(name)


def _record(step: str) -> Path:
    """File with the result of a step at the present commit."""
    git = ("git", "rev-parse", "--short", "HEAD")
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    folder = cache_directory() / "bench" / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{commit}-{step}.json"


if __name__ == "__main__":
    app()
