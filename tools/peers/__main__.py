# SPDX-License-Identifier: Apache-2.0
"""python -m tools.peers install|test"""

import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from tools.cluster.linux_namespaces import isolated
from tools.peers.suites import PEERS, PeerResult, PeerSuite, summary, write_results
from tools.suites.durations import Result, print_results
from tools.suites.sessions import run_concurrently

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
        list[str] | None, typer.Argument(help="Arguments for pytest, such as -k rank; leave the page.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--peer", help="Name of a peer; only the suites of these peers run.")
    ] = None,
    cached: Annotated[
        bool, typer.Option("--cached", help="Only peers whose programs are in the cache; leave the page.")
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help="Minutes after which no other suite starts; none starts if not positive. Default: no limit.",
        ),
    ] = None,
) -> None:
    """Run the suites of peers, and write the results of those that pass into docs/testing.md."""
    peers = _chosen(names)
    left_out = [peer.name for peer in peers if cached and not peer.is_installed()]
    deadline = math.inf if limit is None else time.monotonic() + 60 * limit
    results: list[PeerResult] = []
    passed: list[PeerResult] = []
    late = []
    for peer in peers:
        if peer.name in left_out:
            continue
        if time.monotonic() > deadline:
            late.append(peer.name)
            continue
        result, is_passed = _run(peer, arguments or ())
        results.append((peer, result))
        if is_passed:
            passed.append((peer, result))
    console = Console(highlight=False)
    print_results(console, (summary(results),), [result for _, result in results])
    if left_out:
        console.print(f"Left out, because the cache has no programs for them: {', '.join(left_out)}")
    if late:
        console.print(f"Left out, because their time was over: {', '.join(late)}")
    if passed and not (cached or arguments):
        write_results(passed)
    if len(passed) < len(results):
        raise typer.Exit(1)


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
        command = [*pytest, f"--junit-xml={report}", "-m", "not full", *peer.options, *peer.tests, *arguments]
        ended = run_concurrently({peer.name: isolated(command) if peer.is_isolated else command})[peer.name]
        result.count([report] if report.exists() else [])
    result.seconds = ended.seconds
    return result, result.end(peer.name, ended.status) and result.tests.total() > 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app()
