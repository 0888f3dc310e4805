# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.operator [RUNS…]"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.bench.operator.measurement import SizeComparison, compare
from tools.bench.operator.tables import comparison, overview, requests, write
from tools.bench.page import PAGE, BenchError
from tools.bootstrap.uv import ROOT
from tools.cluster.commands import ClusterError

LOGS = ROOT / "build" / "bench"

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    runs: Annotated[
        list[int] | None, typer.Argument(help="Numbers of FineTuneJobs. Default: 100 1000 5000.")
    ] = None,
    page: Annotated[
        bool,
        typer.Option(help="Replace the tables in docs/benchmarks.md after each size."),
    ] = True,
    logs: Annotated[Path, typer.Option(help="Folder for the operator's logs.")] = LOGS,
) -> None:
    """Measure the operator with RUNS FineTuneJobs on a control plane that is otherwise empty."""
    console = Console(highlight=False)
    logs.mkdir(parents=True, exist_ok=True)
    measured = []
    try:
        for number in runs or [100, 1000, 5000]:
            measured.append(_measure(number, logs, console))
            for sheet in (comparison(measured), overview(measured), requests(measured[-1].operator)):
                console.print(sheet.to_terminal())
            # Written after each size, so that an error at the next size does not lose it.
            if page:
                write(PAGE, measured)
    except (BenchError, ClusterError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _measure(runs: int, logs: Path, console: Console) -> SizeComparison:
    """Measure one size, and show the progress on a terminal."""
    title = f"{runs:,} FineTuneJobs"
    console.print(f"{title} …")
    # Refresh slowly: drawing takes processor time from what is measured.
    with console.status(title, refresh_per_second=1) as shown:
        return compare(runs, logs, lambda text: shown.update(f"{title}: {text}"))


if __name__ == "__main__":
    app()
