# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.data [ROWS]"""

from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.comparison import (
    PEAK_MEMORY,
    Comparison,
    TableColumn,
    Target,
    Workload,
    median_seconds,
    peak_mebibytes,
)
from tools.bench.data.synthetic import rows_file

DATA: Final = Comparison(
    name="data",
    programs={"finetune-trainer": "tools.bench.data.ours", "script with datasets": "tools.bench.data.peer"},
    same=(
        lambda printed: printed["rows"],
        "the programs kept different numbers of rows, so their times are not comparable",
    ),
    title=lambda workload, _rounds: f"{workload.name}, {workload.size / 1e9:.2f} GB",
    columns=(
        TableColumn("rows/s", lambda rounds, _peer, work: f"{work.rows / median_seconds(rounds):,.0f}"),
        TableColumn("MB/s", lambda rounds, _peer, work: f"{work.size / 1e6 / median_seconds(rounds):.1f}"),
        PEAK_MEMORY,
        TableColumn("time, s", lambda rounds, *_: f"{median_seconds(rounds):.1f}"),
        TableColumn(
            "processor time, s",
            lambda rounds, *_: f"{median(each.processor_seconds for each in rounds):.1f}",
        ),
        TableColumn("rows kept", lambda rounds, *_: f"{rounds[0].printed['rows']:,}"),
    ),
    targets=(
        Target(lambda ours, _peer: peak_mebibytes(ours), "MiB of memory", 1024, form=".0f"),
        Target(
            lambda ours, peer: median_seconds(ours) / median_seconds(peer), "times the time of the script", 1
        ),
    ),
    packages=("datasets",),
)

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
    with Console().status(f"Generating {rows:,} rows"):
        file = rows_file(rows)
    workload = Workload(f"{rows:,} rows", (str(file),), rows=rows, size=file.stat().st_size)
    DATA.run([workload], rounds, page=page, only_peer=only_peer)


if __name__ == "__main__":
    app()
