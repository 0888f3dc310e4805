# SPDX-License-Identifier: Apache-2.0
"""Measure the start of an operator on a cluster with runs that have all ended.

python -m tools.bench.operator.history [RUNS…]

Each run has two Checkpoints, one of them promoted. Half of the runs belong to one model line; each remaining
run has a line of its own. All are copies of one run that the operator completed.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.operator import control_planes, workload
from tools.bench.operator.bench_kubelet import BenchKubelet
from tools.bench.operator.control_planes import client, for_each_concurrently
from tools.bench.operator.deadlines import background, patience, until_done
from tools.bench.operator.health_probe import HealthProbe
from tools.bench.operator.operator_process import OperatorProcess
from tools.bench.operator.request_ledger import KUBELET, OPERATOR, QUIET_SECONDS, USER, RequestLedger
from tools.bench.operator.tables import MEBIBYTE
from tools.bench.operator.workload import Copies, checkpoint_name
from tools.bench.page import BenchError, Sheet
from tools.bench.program import peak_bytes, processor_seconds
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.cluster.processes import resident_bytes

LINE: Final = "routing"
"""Model line of half of the runs."""
KINDS: Final = ("FineTuneJob", "Checkpoint")
"""Kinds of the copied objects."""
ORIGINAL_SECONDS: Final = 120

SIZES: Final = (3_500, 10_000)
"""Numbers of runs with a table in docs/benchmarks.md."""

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Phase:
    """Figures of one phase of the operator process.

    Attributes:
        active_seconds: from the start of the process until it is active; None if it was active before.
        seconds: duration of the phase.
        processor_seconds: processor time of the operator since its start.
        max_response_seconds: longest time until a response of /healthz.
        passes: reconcile passes over Checkpoints and FineTuneJobs.
        writes: writes of the operator.
        resident_bytes: resident memory at the end of the phase.
        peak_bytes: maximum resident memory since the start of the process.
    """

    active_seconds: float | None
    seconds: float
    processor_seconds: float
    max_response_seconds: float
    passes: float
    writes: int
    resident_bytes: int
    peak_bytes: int


class _History:
    def __init__(self, plane: ControlPlane, runs: int, folder: Path, progress: Callable[[str], None]) -> None:
        self._plane = plane
        self._runs = runs
        self._progress = progress
        self._log = folder / f"operator-history-{runs}.log"

    async def measure(self) -> dict[str, Phase]:
        async with client(self._plane, USER) as user, client(self._plane, KUBELET) as node:
            copies = await self._original(user, node)
            await self._fill(user, copies)
            async with self._operator() as (operator, probe):
                active, started = operator.seconds, time.monotonic() - operator.seconds
                await self._until_idle(operator, 3 * self._runs)
                start = await self._phase(operator, probe, started, active_seconds=active)
                begun, before = time.monotonic(), await operator.passes(KINDS)
                label = {"labels": {"seen": "again"}}
                name = checkpoint_name(0)
                checkpoint = await user.get(KIND_TYPES["Checkpoint"], workload.NAMESPACE, name)
                if checkpoint is None:
                    raise BenchError(f"Checkpoint {name} is gone")
                await user.patch_metadata(checkpoint, label)
                await self._until_idle(operator, before + 1)
                event = await self._phase(operator, probe, begun, before)
        return {"start": start, "one changed label": event}

    async def _original(self, user: KubernetesClient, node: KubernetesClient) -> Copies:
        """Complete one run and return a maker of its copies."""
        self._progress("Completing one run")
        run = workload.finetunejob(0)
        async with self._operator(), background(BenchKubelet(node, workload.NAMESPACE).run()):
            for manifest in (*workload.prerequisites(), run):
                await user.create(manifest)
            job = await until_done(
                *(user, "FineTuneJob", workload.NAMESPACE, run["metadata"]["name"]),
                seconds=ORIGINAL_SECONDS,
                failure=f"the first run is not done; see {self._log}",
            )
            recorded = job["status"]["checkpoints"][0]["name"]
            checkpoint = await user.get(KIND_TYPES["Checkpoint"], workload.NAMESPACE, recorded)
        if checkpoint is None:
            raise BenchError(f"Checkpoint {recorded} is gone")
        for obj in (checkpoint, job):
            await user.delete({**obj, "metadata": {**obj["metadata"]}}, "Background")
        return Copies(job, checkpoint)

    async def _fill(self, user: KubernetesClient, copies: Copies) -> None:
        async def fill(number: int) -> None:
            model = LINE if number < self._runs // 2 else f"line-{number:05d}"
            job = await create_with_status(user, copies.job(number, model))
            for checkpoint in copies.checkpoints(number, model, job["metadata"]["uid"]):
                await create_with_status(user, checkpoint)
            if number % 100 == 0:
                self._progress(f"{number:,} of {self._runs:,} runs created")

        await for_each_concurrently(fill, range(self._runs))

    @contextlib.asynccontextmanager
    async def _operator(self) -> AsyncIterator[tuple[OperatorProcess, HealthProbe]]:
        """An active operator, and a probe of its /healthz."""
        self._ledger = RequestLedger(AuditLog(self._plane.audit_log))
        operator = await OperatorProcess.start(
            self._plane.client(OPERATOR), "default", self._log, patience(self._runs)
        )
        probe = HealthProbe(operator.port)
        try:
            async with background(probe.run()):
                yield operator, probe
                await operator.stop()
        finally:
            await operator.kill()

    async def _until_idle(self, operator: OperatorProcess, passes: float) -> None:
        await operator.until_idle(KINDS, passes, patience(self._runs), self._progress)

    async def _phase(
        self,
        operator: OperatorProcess,
        probe: HealthProbe,
        begun: float,
        passes: float = 0,
        active_seconds: float | None = None,
    ) -> Phase:
        seconds, processor = time.monotonic() - begun, processor_seconds(operator.pid)
        # Wait, so that late writes are counted.
        await asyncio.sleep(QUIET_SECONDS)
        self._ledger.read()
        return Phase(
            active_seconds=active_seconds,
            seconds=seconds,
            processor_seconds=processor,
            max_response_seconds=await probe.longest(since=begun),
            passes=await operator.passes(KINDS) - passes,
            writes=self._ledger.operator_writes,
            resident_bytes=resident_bytes(operator.pid),
            peak_bytes=peak_bytes(operator.pid),
        )


async def create_with_status(user: KubernetesClient, manifest: Manifest) -> Manifest:
    """Create a copy of an object of our kinds, and give it the status of the original."""
    created = await user.create(manifest)
    identity = {key: created["metadata"][key] for key in ("name", "namespace", "uid")}
    return await user.apply_status(
        {
            "apiVersion": manifest["apiVersion"],
            "kind": manifest["kind"],
            "metadata": identity,
            "status": manifest["status"],
        }
    )


def sheet(runs: int, phases: dict[str, Phase]) -> Sheet:
    """The results as a table."""
    rows: dict[str, Callable[[Phase], Any]] = {
        "until its term begins, s": lambda each: (
            "" if each.active_seconds is None else f"{each.active_seconds:.1f}"
        ),
        "until every object is reconciled, s": lambda each: f"{each.seconds:.1f}",
        "processor time since its start, s": lambda each: f"{each.processor_seconds:.1f}",
        "longest response time of /healthz, ms": lambda each: f"{each.max_response_seconds * 1000:.0f}",
        "passes": lambda each: f"{each.passes:,.0f}",
        "writes": lambda each: each.writes,
        "resident memory at the end, MiB": lambda each: f"{each.resident_bytes / MEBIBYTE:.0f}",
        "peak memory, MiB": lambda each: f"{each.peak_bytes / MEBIBYTE:.0f}",
    }
    return Sheet(
        f"{runs:,} ended runs with {2 * runs:,} Checkpoints, {runs // 2:,} of the runs in one model line",
        ("", *phases),
        tuple((name, *(str(of(each)) for each in phases.values())) for name, of in rows.items()),
    )


@app.command()
def history(
    sizes: Annotated[
        list[int] | None,
        typer.Argument(help=f"Numbers of ended FineTuneJobs. Default: {' '.join(map(str, SIZES))}."),
    ] = None,
    page: control_planes.Page = True,
    logs: control_planes.Logs = control_planes.LOGS,
) -> None:
    """Measure the start of the operator on a control plane with many ended runs.

    Only tables of the default numbers are written to docs/benchmarks.md.
    """
    for runs in sizes or SIZES:

        def table(plane: ControlPlane, progress: Callable[[str], None], runs: int = runs) -> Sheet:
            return sheet(runs, asyncio.run(_History(plane, runs, logs, progress).measure()))

        begin = f"<!-- Written by python -m tools.bench.operator.history {runs} from here -->"
        control_planes.measure_alone("history", table, begin if page and runs in SIZES else None, logs)


if __name__ == "__main__":
    app()
