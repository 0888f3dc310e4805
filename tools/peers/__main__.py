"""python -m tools.peers install|test"""

import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.page import put
from tools.bench.sheet import Sheet
from tools.cluster.isolation import isolated
from tools.peers.suites import PEERS, PeerSuite
from tools.suites.durations import PAGE, Result, minutes
from tools.suites.lanes import run_concurrently

BEGIN: Final = "<!-- Written by make test-peers from here -->"

app = typer.Typer(add_completion=False)


@app.command("install")
def install_peers(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all peers.")] = None,
) -> None:
    """Install the programs of peers into the cache."""
    for peer in _chosen(names):
        peer.install()


@app.command("test")
def run_peers(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments for pytest, such as -k rank.")
    ] = None,
    cached: Annotated[
        bool, typer.Option("--cached", help="Only peers whose programs are in the cache; leave the page.")
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option("--minutes", help="Minutes after which no other suite starts. Default: no limit."),
    ] = None,
) -> None:
    """Run the suites of all peers, and write the results into docs/testing.md."""
    left_out = [peer.name for peer in PEERS if cached and not peer.is_installed()]
    deadline = math.inf if limit is None else time.monotonic() + 60 * limit
    results, late = [], []
    for peer in PEERS:
        if peer.name in left_out:
            continue
        if time.monotonic() > deadline:
            late.append(peer.name)
        else:
            results.append(_run(peer, arguments or ()))
    table = sheet([result for result, _ in results])
    console = Console(highlight=False)
    console.print(table.to_terminal())
    if left_out:
        console.print(f"Left out, because the cache has no programs for them: {', '.join(left_out)}")
    if late:
        console.print(f"Left out, because {limit:g} min had passed: {', '.join(late)}")
    if not all(passed for _, passed in results):
        raise typer.Exit(1)
    if not (cached or late or arguments):
        put(PAGE, BEGIN, [table], "`make test-peers` with everything installed")


def sheet(results: Sequence[Result]) -> Sheet:
    """One row per peer."""
    rows = tuple(
        (each.title, f"{each.tests.total():,}", f"{each.skipped:,}", minutes(each.seconds))
        for each in results
    )
    return Sheet("Peers", ("peer", "tests", "skipped", "min:s"), rows)


def _chosen(names: Sequence[str] | None) -> list[PeerSuite]:
    if unknown := set(names or ()) - {peer.name for peer in PEERS}:
        raise typer.BadParameter(f"no peer {', '.join(sorted(unknown))}")
    return [peer for peer in PEERS if not names or peer.name in names]


def _run(peer: PeerSuite, arguments: Sequence[str]) -> tuple[Result, bool]:
    """Result of one suite, and whether it passed."""
    peer.install()
    result = Result(peer.title)
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = (sys.executable, "-m", "pytest", "--no-header", "--durations=15", "--durations-min=2")
        command = [*pytest, f"--junit-xml={report}", "-m", "not full", *peer.tests, *arguments]
        ended = run_concurrently({peer.name: isolated(command) if peer.is_isolated else command})[peer.name]
        result.count([report] if report.exists() else [])
    result.seconds = ended.seconds
    return result, ended.status == 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app()
