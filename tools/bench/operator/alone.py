"""A measurement with a control plane, a table and a place in the page of its own."""

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
from tools.cluster.errors import ClusterError
from tools.cluster.toolchain import KUBERNETES

LOGS: Final = ROOT / "build" / "bench"
Page = Annotated[bool, typer.Option(help="Whether the table replaces that in docs/benchmarks.md.")]
Logs = Annotated[Path, typer.Option(help="Folder for the operator's log.")]


def measure(
    name: str, of: Callable[[ControlPlane, Callable[[str], None]], Sheet], begin: str | None, logs: Path
) -> None:
    """Measure on a new control plane, print the table, and write it into the page.

    Args:
        name: of the control plane.
        of: makes the table, given the control plane and a function that shows the progress.
        begin: the line of the page after which the table stands; None: it is printed only.
        logs: folder for logs; it is made.

    Raises:
        typer.Exit: it could not be measured; the reason is printed.
    """
    console = Console(highlight=False)
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with (
            console.status("a control plane is started", refresh_per_second=1) as shown,
            control_plane(name) as plane,
        ):
            plane.kubectl.define(ROOT / "crds")
            made = of(plane, shown.update)
    except (BenchError, ClusterError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    console.print(made.to_terminal())
    if begin is not None:
        put(PAGE, begin, [made], f"Kubernetes {KUBERNETES.version}")
