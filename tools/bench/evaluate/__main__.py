# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.evaluate [ROUNDS]"""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.evaluate.page import rate, sheet, write
from tools.bench.evaluate.workload import ROWS
from tools.bench.page import PAGE
from tools.bench.program import ProgramResult, alternate
from tools.models import gemma

OURS: Final = "evaluate stage"
PEER: Final = "one by one"
PROGRAMS: Final = {OURS: "tools.bench.evaluate.ours", PEER: "tools.bench.evaluate.peer"}
MIN_SPEEDUP: Final = 5
"""Minimum of the stage's rows per second relative to one row at a time."""

app = typer.Typer(add_completion=False)


@app.command()
def evaluatebench(
    rounds: Annotated[int, typer.Argument(min=1, help="Runs of each program, in alternation.")] = 3,
    workload: Annotated[
        str | None, typer.Option(help="Example whose rows are answered. Default: each.")
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/benchmarks.md.")] = False,
) -> None:
    """Answer rows with Gemma 3 270M, as the evaluate stage does and one by one, in alternation.

    Each run is a process of its own. Exit code 1: the stage answers less than 5 times as many rows per
    second, or an answer differs.
    """
    console = Console(highlight=False)
    model = str(gemma())
    sheets = []
    problems: list[str] = []
    try:
        for name in ROWS if workload is None else [workload]:
            measured = alternate(console, name, rounds, PROGRAMS, model, name, str(ROWS[name]))
            sheets.append(sheet(name, measured))
            console.print(sheets[-1].to_terminal())
            problems.extend(_problems(name, measured))
        if page:
            write(PAGE, sheets)
    except BenchError as error:
        problems.append(str(error))
    if problems:
        print(f"evaluatebench: {'; '.join(problems)}", file=sys.stderr)
        raise typer.Exit(1)


def _problems(workload: str, measured: Mapping[str, Sequence[ProgramResult]]) -> list[str]:
    """Missed targets of one workload."""
    found = []
    expected, *others = (each.printed["answers"] for each in (*measured[PEER], *measured[OURS]))
    if any(answers != expected for answers in others):
        found.append("the programs answered differently, so they are not comparable")
    if (speedup := rate(measured[OURS]) / rate(measured[PEER])) < MIN_SPEEDUP:
        found.append(f"{speedup:.1f} times the rows per second of one by one; the target is {MIN_SPEEDUP}")
    return [f"{workload}: {problem}" for problem in found]


if __name__ == "__main__":
    app()
