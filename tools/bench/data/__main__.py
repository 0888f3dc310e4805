"""python -m tools.bench.data [ROWS]"""

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.data.generate import rows_file
from tools.bench.data.page import sheet, write
from tools.bench.errors import BenchError
from tools.bench.page import PAGE
from tools.bench.program import ProgramResult, run

OURS: Final = "finetune-trainer"
PROGRAMS: Final = {OURS: "tools.bench.data.ours", "a script on datasets": "tools.bench.data.peer"}
MAX_MEMORY_BYTES: Final = 1 << 30
"""Memory that a preparation may take."""

app = typer.Typer(add_completion=False)


@app.command()
def databench(
    rows: Annotated[int, typer.Argument(min=1, help="How many rows.")] = 5_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each program runs, in turns.")] = 1,
    only_peer: Annotated[bool, typer.Option("--only-peer", help="Leave ours out.")] = False,
    page: Annotated[
        bool, typer.Option("--page", help="The table takes the place of the one in docs/benchmarks.md.")
    ] = False,
) -> None:
    """Prepare a file of made-up rows, 2 GB by default, and do the same with datasets, one after the other.

    Each runs alone, in processes of its own. Exit code 1: ours was slower or took more than 1 GiB, or one of
    them failed.
    """
    console = Console(highlight=False)
    programs = {name: module for name, module in PROGRAMS.items() if not (only_peer and name == OURS)}
    measured: dict[str, list[ProgramResult]] = {name: [] for name in programs}
    try:
        with console.status(f"making {rows:,} rows"):
            file = rows_file(rows)
        for turn in range(rounds):
            for name, module in programs.items():
                # Drawn seldom, since it takes processor time of what is measured.
                with console.status(f"{name}, {turn + 1} of {rounds}", refresh_per_second=1):
                    measured[name].append(run(module, str(file)))
        table = sheet(measured, rows, file.stat().st_size)
        console.print(table.to_terminal())
        if page:
            write(PAGE, table)
        _judge(measured)
    except BenchError as error:
        print(f"databench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _judge(measured: Mapping[str, Sequence[ProgramResult]]) -> None:
    if len({each.printed["rows"] for rounds in measured.values() for each in rounds}) > 1:
        raise BenchError("the programs leave different numbers of rows: they did not do the same")
    peak = max((each.peak_bytes for each in measured.get(OURS, ())), default=0)
    if peak > MAX_MEMORY_BYTES:
        raise BenchError(f"{OURS} took {peak >> 20} MiB of memory; expected at most {MAX_MEMORY_BYTES >> 20}")
    seconds = {name: median(each.seconds for each in rounds) for name, rounds in measured.items()}
    fastest = min(seconds, key=seconds.__getitem__)
    if OURS in seconds and fastest != OURS:
        raise BenchError(
            f"{OURS} took {seconds[OURS]:.1f} s, {fastest} {seconds[fastest]:.1f} s; expected less than that"
        )


if __name__ == "__main__":
    app()
