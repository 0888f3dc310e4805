# SPDX-License-Identifier: Apache-2.0
"""Measure how long a run waits for its first Job while another team creates runs.

python -m tools.bench.operator.neighbour [RUNS]

The other team creates its runs eight at a time: suspended runs, runs whose store does not exist, and runs
that start. Meanwhile this team creates a few runs, one after another. No pod starts.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from finetune_operator.api.labels import OWNER_NAME
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Unavailable
from finetune_operator.engine.resources import JOB
from finetune_operator.plan import Manifest
from tools.bench.operator import control_planes, workload
from tools.bench.operator.bench_kubelet import BenchKubelet
from tools.bench.operator.control_planes import client, create
from tools.bench.operator.deadlines import background, patience, until_done
from tools.bench.operator.operator_process import OperatorProcess
from tools.bench.operator.request_ledger import KUBELET, OPERATOR, USER
from tools.bench.page import BenchError, Sheet
from tools.cluster import ControlPlane

TRIES: Final = 5
"""Number of this team's runs per kind of neighbour."""
PAUSE_SECONDS: Final = 0.5
READY_SECONDS: Final = 120
WATCH_SECONDS: Final = 3600
NEIGHBOURS: Final[dict[str, dict[str, Any]]] = {
    "suspended": {"suspend": True},
    "blocked": {"store": {"uri": "pvc://missing"}},
    "starting": {},
}
"""Fields in the spec of the other team's runs, by kind of run."""

BEGIN: Final = "<!-- Written by python -m tools.bench.operator.neighbour from here -->"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Waits:
    """Waiting times of this team's runs.

    Attributes:
        seconds: for each run: time from its creation until the watch reported its first Job.
        neighbours: number of the other team's runs when the last run got its Job.
    """

    seconds: tuple[float, ...]
    neighbours: int


class _Neighbour:
    def __init__(self, plane: ControlPlane, runs: int, folder: Path, progress: Callable[[str], None]) -> None:
        self._plane = plane
        self._runs = runs
        self._progress = progress
        self._log = folder / f"operator-neighbour-{runs}.log"
        self._numbers = itertools.count()
        self._first_jobs: dict[str, asyncio.Future[float]] = {}

    async def measure(self) -> dict[str, Waits]:
        async with client(self._plane, USER) as user, client(self._plane, KUBELET) as node:
            operator = await OperatorProcess.start(
                self._plane.client(OPERATOR), "default", self._log, patience(self._runs)
            )
            try:
                async with background(self._watch(node)):
                    await self._prepare(user, node)
                    waits = {"none": Waits(await self._create_own_runs(user), 0)}
                    for kind, spec in NEIGHBOURS.items():
                        waits[kind] = await self._create_both(user, kind, spec)
                    await operator.stop()
            finally:
                await operator.kill()
        return waits

    async def _prepare(self, user: KubernetesClient, node: KubernetesClient) -> None:
        for manifest in workload.prerequisites():
            await user.create(manifest)
        for kind in NEIGHBOURS:
            await create(user, workload.team_prerequisites(kind))
        teams = (workload.NAMESPACE, *NEIGHBOURS)
        async with background(*(BenchKubelet(node, team).run() for team in teams)):
            for team in teams:
                failure = f"the Dataset of {team} is not ready; see {self._log}"
                await until_done(user, "Dataset", team, "tickets", seconds=READY_SECONDS, failure=failure)

    async def _create_both(self, user: KubernetesClient, kind: str, spec: dict[str, Any]) -> Waits:
        created = 0

        def runs() -> Iterator[Manifest]:
            nonlocal created
            for number in range(self._runs):
                yield workload.finetunejob(number, kind, **spec)
                created += 1

        creation = asyncio.create_task(create(user, runs()))
        # Wait until the operator is busy.
        while created < self._runs / 4 and not creation.done():
            self._progress(f"{created:,} of {self._runs:,} {kind} runs created")
            await asyncio.sleep(0.1)
        seconds = await self._create_own_runs(user)
        neighbours = created
        await creation
        return Waits(seconds, neighbours)

    async def _create_own_runs(self, user: KubernetesClient) -> tuple[float, ...]:
        seconds = []
        for number in itertools.islice(self._numbers, TRIES):
            run = workload.finetunejob(number)
            name = run["metadata"]["name"]
            self._first_jobs[name] = asyncio.get_running_loop().create_future()
            began = time.monotonic()
            await user.create(run)
            try:
                async with asyncio.timeout(patience(self._runs)):
                    seconds.append(await self._first_jobs[name] - began)
            except TimeoutError as error:
                raise BenchError(f"FineTuneJob {name} got no Job; see {self._log}") from error
            await asyncio.sleep(PAUSE_SECONDS)
        return tuple(seconds)

    async def _watch(self, node: KubernetesClient) -> None:
        while True:
            try:
                # A watch without a resourceVersion begins with the existing objects.
                async for event in node.watch(JOB, workload.NAMESPACE, "", "", seconds=WATCH_SECONDS):
                    labels = (event["object"].get("metadata") or {}).get("labels") or {}
                    waiting = self._first_jobs.get(labels.get(OWNER_NAME, ""))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(time.monotonic())
            except Unavailable:
                continue


def sheet(runs: int, waits: dict[str, Waits]) -> Sheet:
    """The results as a table."""
    rows: dict[str, Callable[[Waits], str]] = {
        "minimum, s": lambda each: f"{min(each.seconds):.2f}",
        "maximum, s": lambda each: f"{max(each.seconds):.2f}",
        "runs of the other team by then": lambda each: f"{each.neighbours:,}",
    }
    return Sheet(
        f"Time until a run has its first Job while another team creates {runs:,} runs",
        ("runs of the other team", *waits),
        tuple((name, *(of(each) for each in waits.values())) for name, of in rows.items()),
    )


@app.command()
def neighbour(
    runs: Annotated[
        int, typer.Argument(help="Number of FineTuneJobs of each kind that the other team creates.")
    ] = 2000,
    page: control_planes.Page = True,
    logs: control_planes.Logs = control_planes.LOGS,
) -> None:
    """Measure how one team's runs delay those of another team."""

    def table(plane: ControlPlane, progress: Callable[[str], None]) -> Sheet:
        return sheet(runs, asyncio.run(_Neighbour(plane, runs, logs, progress).measure()))

    control_planes.measure_alone("neighbour", table, BEGIN if page else None, logs)


if __name__ == "__main__":
    app()
