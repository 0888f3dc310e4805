# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.operator.crowds [CROWD…] [--share 0.1]"""

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from tools.bench.operator import control_planes
from tools.bench.operator.crowds.copied import BUDGET, VERSIONS
from tools.bench.operator.crowds.crowd import Crowd, CrowdScene
from tools.bench.operator.crowds.endpoints import ENDPOINTS
from tools.bench.operator.crowds.waiting_jobs import QUEUED, REFUSED
from tools.bench.page import Sheet
from tools.cluster import ControlPlane

CROWDS: Final[dict[str, Crowd]] = {
    each.name: each
    for each in (
        ENDPOINTS,
        REFUSED,
        QUEUED,
        VERSIONS,
        BUDGET,
    )
}

app = typer.Typer(add_completion=False)


@app.command()
def crowds(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Crowds to measure: {', '.join(CROWDS)}. Default: all.")
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the full size, for a trial.")] = 1.0,
    page: control_planes.Page = True,
    logs: control_planes.Logs = control_planes.LOGS,
) -> None:
    """Measure the operator with crowds, and compare the figures with their ceilings.

    Only tables of the full size are written to docs/benchmarks.md.
    """
    unknown = [name for name in names or () if name not in CROWDS]
    if unknown:
        raise typer.BadParameter(f"no crowd is called {', '.join(unknown)}: {', '.join(CROWDS)}")
    exceeded = []
    for name in names or CROWDS:
        crowd = CROWDS[name]
        size = max(1, round(crowd.size * share))

        def table(
            plane: ControlPlane, progress: Callable[[str], None], crowd: Crowd = crowd, size: int = size
        ) -> Sheet:
            stage = CrowdScene(plane, size, logs / f"operator-{crowd.name}-{size}.log", progress)
            asyncio.run(crowd.measure(stage))
            exceeded.extend(crowd.exceeded(stage.phases))
            return crowd.sheet(size, stage.phases)

        begin = f"<!-- Written by python -m tools.bench.operator.crowds {name} from here -->"
        control_planes.measure_alone("crowd", table, begin if page and share == 1 else None, logs)
    for each in exceeded:
        print(f"above its ceiling: {each}", file=sys.stderr)
    if exceeded:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
