# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of each request before a run's first Job for the control plane.

python -m tools.bench.operator.costs [OBJECTS]

No operator runs. Each kind of request is sent OBJECTS times, eight at a time. A measurement ends when no
client writes any more, so its figures include the reactions of controllers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.executor import EventRecorder
from finetune_operator.plan import Event, Manifest
from finetune_operator.reconcile.passes import block
from finetune_operator.runtime.caches import KIND_TYPES
from finetune_operator.status.reasons import EventReason, Reason
from tools.bench.operator import alone, workload
from tools.bench.operator.controlplanes import client, for_each_concurrently
from tools.bench.operator.requestledger import OPERATOR, USER, RequestLedger
from tools.bench.sheet import Sheet
from tools.bench.usage import processor_seconds
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.cluster.processes import Processes

BEGIN: Final = "<!-- Written by python -m tools.bench.operator.costs from here -->"

EVENT: Final = Event("Normal", EventReason.STAGE_STARTED, "Preflight has started")

app = typer.Typer(add_completion=False)

Cost = dict[str, float]
"""Processor seconds of each process of the control plane."""


class _Costs:
    def __init__(self, plane: ControlPlane, objects: int, progress: Callable[[str], None]) -> None:
        self._plane = plane
        self._objects = objects
        self._progress = progress
        self._processes = Processes(plane.layout.run, plane.layout.log)
        self._costs: dict[str, Cost] = {}

    async def measure(self) -> dict[str, Cost]:
        """Processor seconds per request, by kind of request."""
        async with client(self._plane, USER) as user, client(self._plane, OPERATOR) as operator:
            ledger = RequestLedger(AuditLog(self._plane.audit_log))
            for manifest in workload.prerequisites():
                await user.create(manifest)
            await ledger.until_quiet()
            events = EventRecorder(operator, OPERATOR, "0")
            runs: list[Manifest] = []

            async def create_run(run: Manifest) -> None:
                runs.append(await user.create(run))

            numbers = range(self._objects)
            manifests = [workload.finetunejob(each) for each in numbers]
            await self._measure("create a FineTuneJob", create_run, manifests)
            await self._measure("read the FineTuneJob", lambda run: _read(operator, run), runs)
            await self._measure("apply its status", lambda run: _write_status(operator, run), runs)
            await self._measure("create an Event", lambda run: events.record(run, EVENT), runs)
            jobs = [workload.bare_job(each) for each in numbers]
            await self._measure("create a Job; the Job controller creates its pod", user.create, jobs)
        return self._costs

    async def _measure(
        self, name: str, request: Callable[[Any], Awaitable[object]], subjects: list[Manifest]
    ) -> None:
        self._progress(name)
        before, ledger = self._processor_seconds(), RequestLedger(AuditLog(self._plane.audit_log))
        await for_each_concurrently(request, subjects)
        await ledger.until_quiet()
        self._costs[name] = {
            process: (seconds - before[process]) / len(subjects)
            for process, seconds in self._processor_seconds().items()
        }

    def _processor_seconds(self) -> Cost:
        pids = {name: self._processes.pid(name) for name in self._processes.names()}
        return {name: processor_seconds(pid) for name, pid in pids.items() if pid}


async def _read(cluster: KubernetesClient, run: Manifest) -> None:
    await cluster.get(KIND_TYPES["FineTuneJob"], run["metadata"]["namespace"], run["metadata"]["name"])


async def _write_status(cluster: KubernetesClient, run: Manifest) -> None:
    """Write the shortest possible status."""
    status = block(
        FineTuneJob.model_validate(run), Reason.PREFLIGHT, "Preflight runs", datetime.now(UTC)
    ).manifest
    identity = {key: run["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
    await cluster.apply_status({**run, "metadata": identity, "status": status})


def sheet(objects: int, costs: dict[str, Cost]) -> Sheet:
    """The results as a table."""
    names = list(next(iter(costs.values())))
    return Sheet(
        f"Processor time per request, ms ({objects:,} requests of each kind)",
        ("request", *names, "all"),
        tuple(
            (
                request,
                *(f"{1000 * cost[name]:.1f}" for name in names),
                f"{1000 * sum(cost.values()):.1f}",
            )
            for request, cost in costs.items()
        ),
    )


@app.command()
def costs(
    objects: Annotated[int, typer.Argument(help="Number of requests of each kind.")] = 500,
    page: alone.Page = True,
    logs: alone.Logs = alone.LOGS,
) -> None:
    """Measure the cost of each request before a run's first Job for the control plane."""

    def table(plane: ControlPlane, progress: Callable[[str], None]) -> Sheet:
        return sheet(objects, asyncio.run(_Costs(plane, objects, progress).measure()))

    alone.measure("costs", table, BEGIN if page else None, logs)


if __name__ == "__main__":
    app()
