# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.evaluate [ROUNDS]"""

from statistics import median
from typing import Annotated, Final

import typer

from tools.bench.comparison import PEAK_MEMORY, Comparison, Rounds, TableColumn, Target, Workload
from tools.bench.evaluate.workload import ROWS
from tools.models import gemma


def rate(rounds: Rounds) -> float:
    """Rows per second of processor time: the median over the rounds."""
    return float(median(len(each.printed["answers"]) / each.printed["seconds"] for each in rounds))


EVALUATE: Final = Comparison(
    name="evaluate",
    programs={"evaluate stage": "tools.bench.evaluate.ours", "one by one": "tools.bench.evaluate.peer"},
    same=(
        lambda printed: printed["answers"],
        "the programs answered differently, so they are not comparable",
    ),
    title=lambda workload, rounds: f"{workload.name}: {workload.rows} rows, {len(rounds)} rounds",
    columns=(
        TableColumn("rows per second of processor time", lambda rounds, *_: f"{rate(rounds):.2f}"),
        TableColumn("relative to one by one", lambda rounds, peer, _: f"{rate(rounds) / rate(peer):.1f}"),
        PEAK_MEMORY,
    ),
    targets=(
        Target(
            lambda ours, peer: rate(ours) / rate(peer),
            "times the rows per second of one by one",
            5,
            is_minimum=True,
            form=".1f",
        ),
    ),
    packages=("torch", "transformers"),
)

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
    model = str(gemma())
    names = ROWS if workload is None else [workload]
    workloads = [Workload(name, (model, name, str(ROWS[name])), rows=ROWS[name]) for name in names]
    EVALUATE.run(workloads, rounds, page=page)


if __name__ == "__main__":
    app()
