"""python -m tools.bench.train [STEPS]"""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.page import PAGE
from tools.bench.program import ProgramResult, run
from tools.bench.train.page import rate, save_share, sheet, write
from tools.bench.train.workload import SOURCES
from tools.models import gemma

OURS: Final = "finetune-trainer"
PEER: Final = "TRL SFTTrainer"
PROGRAMS: Final = {OURS: "tools.bench.train.ours", PEER: "tools.bench.train.peer"}
MIN_SPEEDUP: Final = 1.5
"""Tokens a second in times of the peer's."""
MAX_SAVE_SHARE: Final = 0.05

app = typer.Typer(add_completion=False)


@app.command()
def trainbench(
    steps: Annotated[int, typer.Argument(min=4, help="Optimizer steps of a run.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="How often each program runs, in turns.")] = 3,
    page: Annotated[
        bool, typer.Option("--page", help="The tables take the place of those in docs/benchmarks.md.")
    ] = False,
) -> None:
    """Train LoRA adapters of Gemma 3 270M with our trainer and with TRL, in turns.

    Each runs alone, in a process of its own. Exit code 1: ours makes less than 1.5 times the tokens a second
    of TRL, takes more memory, or stands still for 5 % of the time or more to save its state every 100 steps.
    """
    console = Console(highlight=False)
    model = str(gemma())
    sheets = []
    problems: list[str] = []
    try:
        for workload in SOURCES:
            measured: dict[str, list[ProgramResult]] = {name: [] for name in PROGRAMS}
            for turn in range(rounds):
                for name, module in PROGRAMS.items():
                    # Drawn seldom, since it takes processor time of what is measured.
                    with console.status(f"{workload}: {name}, {turn + 1} of {rounds}", refresh_per_second=1):
                        measured[name].append(run(module, model, workload, str(steps)))
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
    """What is not as it shall be."""
    ours, peer = measured[OURS], measured[PEER]
    found = []
    if len({(each.printed["steps"], each.printed["tokens"]) for each in (*ours, *peer)}) > 1:
        found.append("the programs made different numbers of steps or tokens: they did not do the same")
    if (ratio := rate(ours) / rate(peer)) < MIN_SPEEDUP:
        found.append(f"{ratio:.2f} times the tokens a second of {PEER}; expected {MIN_SPEEDUP}")
    if max(each.peak_bytes for each in ours) > max(each.peak_bytes for each in peer):
        found.append(f"more memory than {PEER}")
    if (share := save_share(ours)) >= MAX_SAVE_SHARE:
        found.append(f"saving takes {share:.1%} of the time; expected less than {MAX_SAVE_SHARE:.0%}")
    return [f"{workload}: {problem}" for problem in found]


if __name__ == "__main__":
    app()
