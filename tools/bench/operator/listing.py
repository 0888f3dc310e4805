# SPDX-License-Identifier: Apache-2.0
"""Compare `finetune ls` with `kubectl get finetunejobs` in a namespace with many runs.

python -m tools.bench.operator.listing [RUNS]

Both print the table of the API server. The benchmark itself writes the runs with their statuses.
"""

import asyncio
import os
import statistics
import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from finetune_operator.plan import Manifest
from tools.bench.operator import control_planes, workload
from tools.bench.operator.control_planes import client, for_each_concurrently
from tools.bench.operator.history import create_with_status
from tools.bench.operator.request_ledger import USER
from tools.bench.operator.tables import MEBIBYTE
from tools.bench.page import BenchError, Sheet
from tools.bench.program import CommandResult, run_command
from tools.cluster import ControlPlane
from tools.cluster.toolchain import program

RUNS: Final = 10_000
"""Number of runs with a table in docs/benchmarks.md."""
ROUNDS: Final = 5
MAX_SECONDS: Final = 2.0
MAX_MEBIBYTES: Final = 150.0
BEGIN: Final = "<!-- Written by python -m tools.bench.operator.listing from here -->"

app = typer.Typer(add_completion=False)


def _environment() -> dict[str, str]:
    """As in a shell of a user, whose Python caches bytecode."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(
    plane: ControlPlane, runs: int, progress: Callable[[str], None]
) -> dict[str, list[CommandResult]]:
    """Fill the namespace, and run both programs in alternation.

    Raises:
        BenchError: a program failed or listed another number of runs.
    """
    asyncio.run(_fill(plane, runs, progress))
    config = str(plane.client(USER))
    options = ("--kubeconfig", config, "--namespace", workload.NAMESPACE)
    programs = {
        "finetune ls": (sys.executable, "-m", "finetune_client", "ls", *options),
        "kubectl get": (str(program("kubectl")), "get", "finetunejobs", *options),
    }
    measured: dict[str, list[CommandResult]] = {name: [] for name in programs}
    for turn in range(ROUNDS + 1):
        for name, command in programs.items():
            progress(f"{name}, round {turn + 1} of {ROUNDS + 1}")
            result = run_command(command, _environment())
            if (lines := result.output.count(b"\n")) != runs + 1:
                raise BenchError(f"{name} printed {lines} lines for {runs} runs")
            # The first round fills caches: bytecode, discovery, the server's.
            if turn:
                measured[name].append(result)
    return measured


async def _fill(plane: ControlPlane, runs: int, progress: Callable[[str], None]) -> None:
    async with client(plane, USER) as user:
        await user.create(workload.namespace())

        async def fill(number: int) -> None:
            await create_with_status(user, ended_run(number))
            if number % 100 == 0:
                progress(f"{number:,} of {runs:,} runs created")

        await for_each_concurrently(fill, range(runs))


def ended_run(number: int) -> Manifest:
    """A run that was promoted, with what the columns of the table show."""
    since = "2026-01-01T00:00:00Z"
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Promoted",
        "message": f"Checkpoint run-{number:05d}-40-best is promoted in model line line-{number:05d}",
        "lastTransitionTime": since,
    }
    status = {
        "phase": "Succeeded",
        "conditions": [ready],
        "progress": {"stage": "train", "step": 40, "totalSteps": 40, "loss": 0.25},
    }
    return {**workload.finetunejob(number), "status": status}


def sheet(runs: int, measured: dict[str, list[CommandResult]]) -> Sheet:
    """The medians as a table."""
    seconds = {name: statistics.median(each.seconds for each in rounds) for name, rounds in measured.items()}
    peaks = {name: max(each.peak_bytes for each in rounds) / MEBIBYTE for name, rounds in measured.items()}
    ours, kubectl = measured
    return Sheet(
        f"List of {runs:,} runs",
        ("", *measured, "ratio", "bound of finetune"),
        (
            (
                f"time, s, median of {ROUNDS}",
                *(f"{each:.2f}" for each in seconds.values()),
                f"{seconds[ours] / seconds[kubectl]:.1f}",
                f"{MAX_SECONDS:g}",
            ),
            (
                "peak memory, MiB",
                *(f"{each:.0f}" for each in peaks.values()),
                f"{peaks[ours] / peaks[kubectl]:.1f}",
                f"{MAX_MEBIBYTES:g}",
            ),
        ),
    )


@app.command()
def listing(
    runs: Annotated[int, typer.Argument(help="Number of ended FineTuneJobs.")] = RUNS,
    page: control_planes.Page = True,
    logs: control_planes.Logs = control_planes.LOGS,
) -> None:
    """Compare `finetune ls` with kubectl; fails if `finetune ls` exceeds its bounds.

    Only a table of the default number is written to docs/benchmarks.md.
    """
    exceeded: list[str] = []

    def table(plane: ControlPlane, progress: Callable[[str], None]) -> Sheet:
        measured = measure(plane, runs, progress)
        ours = measured["finetune ls"]
        if statistics.median(each.seconds for each in ours) > MAX_SECONDS:
            exceeded.append(f"{MAX_SECONDS:g} s")
        if max(each.peak_bytes for each in ours) > MAX_MEBIBYTES * MEBIBYTE:
            exceeded.append(f"{MAX_MEBIBYTES:g} MiB")
        return sheet(runs, measured)

    control_planes.measure_alone("listing", table, BEGIN if page and runs == RUNS else None, logs)
    if exceeded:
        print(f"bench: finetune ls took more than {' and '.join(exceeded)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
