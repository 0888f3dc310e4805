# SPDX-License-Identifier: Apache-2.0
"""python -m tools.evaluation [--page]"""

from importlib.metadata import version
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.page import put
from tools.bootstrap.uv import ROOT
from tools.evaluation import intervals

PAGE: Final = ROOT / "docs" / "scores.md"
BEGIN_ROWS: Final = "<!-- Rows, written by make evaluation-tables from here -->"
BEGIN_COVERAGE: Final = "<!-- Coverage, written by make evaluation-tables from here -->"

app = typer.Typer(add_completion=False)


@app.command()
def tables(
    samples: Annotated[int, typer.Option(help="Samples of each cell that is simulated.")] = 500,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/scores.md.")] = False,
) -> None:
    """Compute how many rows which claim needs, and how often the intervals contain the true value."""
    console = Console(highlight=False)
    sheets = intervals.row_sheets()
    for sheet in sheets:
        console.print(sheet.to_terminal())
    with console.status("simulating coverage", refresh_per_second=1):
        covered = intervals.coverage_sheets(samples)
    for sheet in covered:
        console.print(sheet.to_terminal())
    if page:
        packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
        put(PAGE, BEGIN_ROWS, sheets, packages)
        put(PAGE, BEGIN_COVERAGE, covered, packages)


if __name__ == "__main__":
    app()
