# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.train [STEPS]"""

from statistics import median
from typing import Annotated, Final

import typer

from tools.bench.comparison import (
    PEAK_MEMORY,
    Comparison,
    Rounds,
    TableColumn,
    Target,
    Workload,
    peak_mebibytes,
)
from tools.bench.example_rows import SOURCES
from tools.models import gemma

STEPS_BETWEEN_SAVES: Final = 100


def seconds_per_step(rounds: Rounds) -> float:
    """Median over the rounds, without the first step, which warms up."""
    return float(median(each.printed["seconds"] / (each.printed["steps"] - 1) for each in rounds))


def rate(rounds: Rounds) -> float:
    """Tokens per second."""
    printed = rounds[0].printed
    tokens: float = printed["tokens"] / printed["steps"]
    return tokens / seconds_per_step(rounds)


def save_share(rounds: Rounds) -> float:
    """Share of the time that training waits for saves, one every STEPS_BETWEEN_SAVES steps."""
    save = _save_seconds(rounds)
    return save / (save + STEPS_BETWEEN_SAVES * seconds_per_step(rounds))


def _save_seconds(rounds: Rounds) -> float:
    return float(median(seconds for each in rounds for seconds in each.printed["save_seconds"]))


def _saves(rounds: Rounds) -> bool:
    return "save_seconds" in rounds[0].printed


def _title(workload: Workload, rounds: Rounds) -> str:
    printed = rounds[0].printed
    return f"{workload.name}: {printed['steps']} steps, {printed['tokens']:,} tokens, {len(rounds)} rounds"


TRAIN: Final = Comparison(
    name="train",
    programs={"finetune-trainer": "tools.bench.train.ours", "TRL SFTTrainer": "tools.bench.train.peer"},
    same=(
        lambda printed: (printed["steps"], printed["tokens"]),
        "the programs made different numbers of steps or tokens, so they are not comparable",
    ),
    title=_title,
    columns=(
        TableColumn("tokens/s", lambda rounds, *_: f"{rate(rounds):,.0f}"),
        TableColumn("relative to TRL", lambda rounds, peer, _: f"{rate(rounds) / rate(peer):.2f}"),
        TableColumn("s per step", lambda rounds, *_: f"{seconds_per_step(rounds):.2f}"),
        PEAK_MEMORY,
        TableColumn(
            "s paused per save", lambda rounds, *_: f"{_save_seconds(rounds):.2f}" if _saves(rounds) else ""
        ),
        TableColumn(
            f"share of pauses, save every {STEPS_BETWEEN_SAVES} steps",
            lambda rounds, *_: f"{save_share(rounds):.2%}" if _saves(rounds) else "",
        ),
    ),
    targets=(
        Target(
            lambda ours, peer: rate(ours) / rate(peer),
            "times the tokens per second of TRL",
            1.5,
            is_minimum=True,
        ),
        Target(lambda ours, peer: peak_mebibytes(ours) / peak_mebibytes(peer), "times the memory of TRL", 1),
        Target(lambda ours, _peer: save_share(ours), "of the time for saves", 0.05, form=".1%"),
    ),
    packages=("torch", "transformers", "peft", "trl"),
)

app = typer.Typer(add_completion=False)


@app.command()
def trainbench(
    steps: Annotated[int, typer.Argument(min=4, help="Optimizer steps per run.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each program, in alternation.")] = 3,
    page: Annotated[bool, typer.Option("--page", help="Replace the tables in docs/benchmarks.md.")] = False,
) -> None:
    """Train LoRA adapters of Gemma 3 270M with the trainer and with TRL, in alternation.

    Each run is a process of its own. Exit code 1: the trainer processes less than 1.5 times as many tokens
    per second as TRL, uses more memory, or spends more than 5 % of the time on saves every 100 steps.
    """
    model = str(gemma())
    TRAIN.run([Workload(name, (model, name, str(steps))) for name in SOURCES], rounds, page=page)


if __name__ == "__main__":
    app()
