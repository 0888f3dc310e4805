# SPDX-License-Identifier: Apache-2.0
"""Run a measurement that has its own control plane and its own table in docs/benchmarks.md."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.operator.controlplanes import control_plane
from tools.bench.page import PAGE, put
from tools.bench.sheet import Sheet
from tools.bootstrap.uv import ROOT
from tools.cluster import ControlPlane
from tools.cluster.commands import ClusterError
from tools.cluster.toolchain import KUBERNETES

LOGS: Final = ROOT / "build" / "bench"
Page = Annotated[bool, typer.Option(help="Replace the table in docs/benchmarks.md.")]
Logs = Annotated[Path, typer.Option(help="Folder for the operator's log.")]


def measure_alone(
    name: str, run: Callable[[ControlPlane, Callable[[str], None]], Sheet], begin: str | None, logs: Path
) -> None:
    """Measure on a new control plane, print the table, and write it to the page.

    Args:
        name: name of the control plane.
        run: measures on the control plane and returns the table; its second argument shows the progress.
        begin: marker line of the page before the table; None to print the table only.
        logs: folder for logs; created if missing.

    Raises:
        typer.Exit: the measurement failed; the reason is printed.
    """
    console = Console(highlight=False)
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with (
            console.status("Starting a control plane", refresh_per_second=1) as shown,
            control_plane(name) as plane,
        ):
            plane.kubectl.define(ROOT / "crds")
            table = run(plane, shown.update)
    except (BenchError, ClusterError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    console.print(table.to_terminal())
    if begin is not None:
        put(PAGE, begin, [table], f"Kubernetes {KUBERNETES.version}")
