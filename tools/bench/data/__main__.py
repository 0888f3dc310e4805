# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.data [ROWS]"""

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.data.page import sheet, write
from tools.bench.data.synthetic import rows_file
from tools.bench.errors import BenchError
from tools.bench.page import PAGE
from tools.bench.program import ProgramResult, alternate

OURS: Final = "finetune-trainer"
PROGRAMS: Final = {OURS: "tools.bench.data.ours", "script with datasets": "tools.bench.data.peer"}
MAX_MEMORY_BYTES: Final = 1 << 30
"""Maximum memory of one preparation."""

app = typer.Typer(add_completion=False)


@app.command()
def databench(
    rows: Annotated[int, typer.Argument(min=1, help="Number of rows.")] = 5_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each program, in alternation.")] = 1,
    only_peer: Annotated[
        bool, typer.Option("--only-peer", help="Run only the script, not the trainer.")
    ] = False,
    page: Annotated[bool, typer.Option("--page", help="Replace the table in docs/benchmarks.md.")] = False,
) -> None:
    """Prepare a file of synthetic rows (default: 2 GB) with the trainer and with a script that uses datasets.

    The programs run one after another in separate processes. Exit code 1: the trainer was slower, used more
    than 1 GiB, or a program failed.
    """
    console = Console(highlight=False)
    programs = {name: module for name, module in PROGRAMS.items() if not (only_peer and name == OURS)}
    try:
        with console.status(f"Generating {rows:,} rows"):
            file = rows_file(rows)
        measured = alternate(console, f"{rows:,} rows", rounds, programs, str(file))
        table = sheet(measured, rows, file.stat().st_size)
        console.print(table.to_terminal())
        if page:
            write(PAGE, table)
        _check_targets(measured)
    except BenchError as error:
        print(f"databench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _check_targets(measured: Mapping[str, Sequence[ProgramResult]]) -> None:
    if len({each.printed["rows"] for rounds in measured.values() for each in rounds}) > 1:
        raise BenchError("the programs kept different numbers of rows, so their times are not comparable")
    peak = max((each.peak_bytes for each in measured.get(OURS, ())), default=0)
    if peak > MAX_MEMORY_BYTES:
        raise BenchError(f"{OURS} used {peak >> 20} MiB of memory; the limit is {MAX_MEMORY_BYTES >> 20} MiB")
    seconds = {name: median(each.seconds for each in rounds) for name, rounds in measured.items()}
    fastest = min(seconds, key=seconds.__getitem__)
    if OURS in seconds and fastest != OURS:
        raise BenchError(
            f"{OURS} took {seconds[OURS]:.1f} s and must be faster than {fastest} ({seconds[fastest]:.1f} s)"
        )


if __name__ == "__main__":
    app()
