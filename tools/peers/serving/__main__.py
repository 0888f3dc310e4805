"""python -m tools.peers.serving [STEPS]"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.page import PAGE
from tools.bench.sheet import Sheet
from tools.bench.start.measure import forget
from tools.bootstrap.cache import cache_directory
from tools.bootstrap.uv import ROOT
from tools.cluster.isolation import isolated
from tools.peers import vllm, vllmimage
from tools.peers.serving import service
from tools.peers.serving.page import (
    STREAMS,
    overhead_sheet,
    pairs_of,
    ratio,
    speeds_sheet,
    starts_sheet,
    write,
)
from tools.peers.serving.servers import RunningServer, ServerCommand, ServersFolder, running
from tools.peers.serving.streams import StreamsResult, alternating, measure

MIDDLEWARE: Final = "the middleware"
MIN_RATIO: Final = 0.98
"""Minimum of the tokens per second with the middleware relative to those without."""
TOKENS: Final = {1: 64, 8: 32, 32: 16}
"""Max tokens of an answer, by the number of streams."""
SERVICE: Final = "the middleware, in a pod behind the Service of an endpoint with a NetworkPolicy"
SERVING_CLUSTER: Final = "serving"
Recorded = dict[str, Any]

app = typer.Typer(add_completion=False)


@app.command()
def servingbench(
    steps: Annotated[list[str] | None, typer.Argument(help="Default: those without a record.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Alternating pairs of the middleware.")] = 10,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/benchmarks.md.")] = False,
) -> None:
    """Measure how fast servers start and generate, and what the middleware costs. Keeps each step's result.

    Exit code 1: with the middleware, vLLM generates less than 98 % of the tokens per second without it.
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
    """vLLM with the middleware and without."""
    with _folder() as folder, ExitStack() as stack:
        bare, guarded = (folder.vllm(guarded=guarded) for guarded in (False, True))
        starts = {guarded.name: {"cold": _cold(folder, guarded)}}
        servers = {each.name: stack.enter_context(running(each, folder.path)) for each in (guarded, bare)}
        starts[guarded.name]["warm"] = servers[guarded.name].start_seconds
        speeds = {name: _speeds(server) for name, server in servers.items()}
        console.print(f"{pairs} pairs with and without the middleware")
        measured = alternating(servers[bare.name], servers[guarded.name], pairs)
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
    return {"starts": starts, "speeds": speeds, "compared": {}}


def _service(console: Console, pairs: int) -> Recorded:
    """An endpoint behind its Service, with keys and a NetworkPolicy, on a cluster of its own."""
    console.print("an endpoint on a cluster of its own")
    vllmimage.install()
    command = isolated([sys.executable, "-m", service.__name__, str(pairs)], SERVING_CLUSTER)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{service.__name__} ended with exit code {done.returncode}")
    return {"starts": {}, "speeds": {}, "compared": {SERVICE: json.loads(done.stdout.splitlines()[-1])}}


STEPS: Final[Mapping[str, Callable[[Console, int], Recorded]]] = {
    "vllm": _vllm,
    "built-in": _built_in,
    "service": _service,
}
"""The steps; each takes less than five minutes on two idle cores."""


def _cold(folder: ServersFolder, command: ServerCommand) -> float:
    """Seconds from a start to the first token, with the weights not in the page cache."""
    forget(folder.weights())
    with running(command, folder.path) as server:
        return server.start_seconds


def _speeds(server: RunningServer) -> dict[int, dict[str, float]]:
    measure(server, STREAMS[-1], 2)
    return {streams: asdict(measure(server, streams, TOKENS[streams])) for streams in STREAMS}


def _sheets(found: Mapping[str, Recorded]) -> list[Sheet]:
    starts, speeds, compared = (
        {name: value for step in found.values() for name, value in step[part].items()}
        for part in ("starts", "speeds", "compared")
    )
    rates = {
        name: {int(streams): StreamsResult(**each) for streams, each in value.items()}
        for name, value in speeds.items()
    }
    sheets = [starts_sheet(starts), speeds_sheet(rates)]
    if compared:
        sheets.append(overhead_sheet({name: pairs_of(each) for name, each in compared.items()}))
    return sheets


def _check(found: Mapping[str, Recorded]) -> None:
    if "vllm" in found:
        middleware = ratio(pairs_of(found["vllm"]["compared"][MIDDLEWARE]))
        if middleware.mean < MIN_RATIO:
            raise BenchError(
                f"with the middleware, {middleware} times the tokens per second; the target is {MIN_RATIO}"
            )


@contextmanager
def _folder() -> Iterator[ServersFolder]:
    """A temporary folder with the model, on the disk of the cache, which has the model."""
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent) as name:
        yield ServersFolder.made_in(Path(name))


def _record(step: str) -> Path:
    """File with the result of a step at the present commit."""
    git = ("git", "rev-parse", "--short", "HEAD")
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    folder = cache_directory() / "bench" / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{commit}-{step}.json"


if __name__ == "__main__":
    app()
