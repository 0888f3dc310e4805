"""python -m tools.bench.operator [RUNS…]"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.operator.comparison import Comparison, compare
from tools.bench.operator.page import write
from tools.bench.operator.tables import comparison, overview, requests
from tools.bench.page import PAGE
from tools.bootstrap.uv import ROOT
from tools.cluster.errors import ClusterError

LOGS = ROOT / "build" / "bench"

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    runs: Annotated[
        list[int] | None, typer.Argument(help="How many FineTuneJobs; default 100 1000 5000.")
    ] = None,
    page: Annotated[
        bool,
        typer.Option(help="Whether the tables take the place of those in docs/benchmarks.md, size by size."),
    ] = True,
    logs: Annotated[Path, typer.Option(help="Folder for the operator's logs.")] = LOGS,
) -> None:
    """Measure the operator on a control plane of its own, with RUNS FineTuneJobs and nothing else on it."""
    console = Console(highlight=False)
    logs.mkdir(parents=True, exist_ok=True)
    measured = []
    try:
        for number in runs or [100, 1000, 5000]:
            measured.append(_measure(number, logs, console))
            for sheet in (comparison(measured), overview(measured), requests(measured[-1].operator)):
                console.print(sheet.to_terminal())
            # At once: an error at the next size must not take this one away.
            if page:
                write(PAGE, measured)
    except (BenchError, ClusterError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _measure(runs: int, logs: Path, console: Console) -> Comparison:
    """Measure one size; a terminal shows how far that is."""
    title = f"{runs:,} FineTuneJobs"
    console.print(f"{title} …")
    # Drawn seldom, since it takes processor time of what is measured.
    with console.status(title, refresh_per_second=1) as shown:
        return compare(runs, logs, lambda text: shown.update(f"{title}: {text}"))


if __name__ == "__main__":
    app()
