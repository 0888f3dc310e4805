# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.train [STEPS]"""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.examplerows import SOURCES
from tools.bench.page import PAGE
from tools.bench.program import ProgramResult, alternate
from tools.bench.train.page import rate, save_share, sheet, write
from tools.models import gemma

OURS: Final = "finetune-trainer"
PEER: Final = "TRL SFTTrainer"
PROGRAMS: Final = {OURS: "tools.bench.train.ours", PEER: "tools.bench.train.peer"}
MIN_SPEEDUP: Final = 1.5
"""Minimum of the trainer's tokens per second relative to the peer's."""
MAX_SAVE_SHARE: Final = 0.05
"""Maximum share of the time for saves."""

app = typer.Typer(add_completion=False)


@app.command()
def trainbench(
    steps: Annotated[int, typer.Argument(min=4, help="Optimizer steps per run.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each program, in alternation.")] = 3,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/benchmarks.md.")] = False,
) -> None:
    """Train LoRA adapters of Gemma 3 270M with the trainer and with TRL, in alternation.

    Each run is a process of its own. Exit code 1: the trainer processes less than 1.5 times as many tokens
    per second as TRL, uses more memory, or spends 5 % or more of the time on saves every 100 steps.
    """
    console = Console(highlight=False)
    model = str(gemma())
    sheets = []
    problems: list[str] = []
    try:
        for workload in SOURCES:
            measured = alternate(console, workload, rounds, PROGRAMS, model, workload, str(steps))
            sheets.append(sheet(workload, measured))
            console.print(sheets[-1].to_terminal())
            problems.extend(_problems(workload, measured))
        if page:
            write(PAGE, sheets)
    except BenchError as error:
        problems.append(str(error))
    if problems:
        print(f"trainbench: {'; '.join(problems)}", file=sys.stderr)
        raise typer.Exit(1)


def _problems(workload: str, measured: Mapping[str, Sequence[ProgramResult]]) -> list[str]:
    """Missed targets of one workload."""
    ours, peer = measured[OURS], measured[PEER]
    found = []
    if len({(each.printed["steps"], each.printed["tokens"]) for each in (*ours, *peer)}) > 1:
        found.append("the programs made different numbers of steps or tokens, so they are not comparable")
    if (speedup := rate(ours) / rate(peer)) < MIN_SPEEDUP:
        found.append(f"{speedup:.2f} times the tokens per second of {PEER}; the target is {MIN_SPEEDUP}")
    if max(each.peak_bytes for each in ours) > max(each.peak_bytes for each in peer):
        found.append(f"more memory than {PEER}")
    if (share := save_share(ours)) >= MAX_SAVE_SHARE:
        found.append(f"saves take {share:.1%} of the time; the target is less than {MAX_SAVE_SHARE:.0%}")
    return [f"{workload}: {problem}" for problem in found]


if __name__ == "__main__":
    app()
