# SPDX-License-Identifier: Apache-2.0
"""Measure one operator with a number of runs on an empty control plane, and what it is compared with."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.operator import workload
from tools.bench.operator.bench_kubelet import BenchKubelet
from tools.bench.operator.compared_workloads import Floor, Peer, measure_floor, measure_peer
from tools.bench.operator.control_planes import client, control_plane, create
from tools.bench.operator.deadlines import background, patience, until
from tools.bench.operator.operator_process import OperatorProcess
from tools.bench.operator.request_ledger import (
    KUBELET,
    OPERATOR,
    QUIET_SECONDS,
    USER,
    RequestLedger,
    Requests,
    Spread,
)
from tools.bench.program import ProcessUsage, measure_usage, peak_bytes
from tools.bootstrap.uv import ROOT
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.cluster.processes import Processes

PROGRESS_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """Cost of one operator process.

    Attributes:
        requests: requests of all clients while the process ran, for all runs.
        writes: writes of the operator, for all runs.
        usage: processor time while the process ran.
        peak_bytes: its peak memory.
    """

    requests: Requests
    writes: int
    usage: ProcessUsage
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Results for `runs` FineTuneJobs.

    Attributes:
        runs: number of runs.
        first_jobs: time until a run's first Job exists.
        first_requests: requests of all clients until then, for all runs.
        first_usage: processor time until then, and until no client wrote any more.
        done: time until a run is done.
        chain: cost of the operator that completed the runs, from the first creation.
        restart: cost of an operator that was started afterwards.
        restart_seconds: time until that operator had reconciled every object.
    """

    runs: int
    first_jobs: Spread
    first_requests: Requests
    first_usage: ProcessUsage
    done: Spread
    chain: ProcessCost
    restart: ProcessCost
    restart_seconds: float


def measure(runs: int, folder: Path, progress: Callable[[str], None]) -> Measured:
    """Start a control plane, measure, and remove it.

    Args:
        runs: number of FineTuneJobs.
        folder: folder for the operator's log.
        progress: called with a line of text when the progress changes.

    Raises:
        BenchError: a run was not done.
        ClusterError: the control plane did not start.
    """
    progress("starting a control plane")
    with control_plane("bench") as plane:
        plane.kubectl.define(ROOT / "crds")
        return asyncio.run(_Measurement(plane, runs, folder, progress).run())


class _Measurement:
    def __init__(self, plane: ControlPlane, runs: int, folder: Path, progress: Callable[[str], None]) -> None:
        self._plane = plane
        self._progress = progress
        self._runs = runs
        self._log = folder / f"operator-{runs}.log"
        self._audit = AuditLog(plane.audit_log)
        self._start = self._audit.mark()
        self._ledger = RequestLedger(self._audit)

    async def run(self) -> Measured:
        async with client(self._plane, USER) as user, client(self._plane, KUBELET) as node:
            async with self._operator() as operator:
                await self._prepare(user, node)
                begun = self._begin(operator)
                async with background(self._show_progress()):
                    await create(user, map(workload.finetunejob, range(self._runs)))
                    # No pod starts yet, as on a full cluster and as in the other measurements.
                    await self._until("every run has a Job", lambda: self._ledger.have_first_jobs(self._runs))
                    first_usage = self._usage(operator) - begun
                    first_requests = self._ledger.requests
                    first_jobs = self._ledger.spread(self._ledger.first_jobs)
                    pause = (datetime.now(UTC) - max(self._ledger.first_jobs.values())).total_seconds()
                    async with background(BenchKubelet(node, workload.NAMESPACE).run()):
                        await self._until("all runs are done", lambda: self._all_done(user, "FineTuneJob"))
                done = self._ledger.spread(self._ledger.last_written, pause)
                chain = self._end(operator, begun)
            self._progress("starting a second operator")
            started, begun = time.monotonic(), self._begin()
            async with self._operator() as operator:
                for kind in ("FineTuneJob", "Checkpoint"):
                    await operator.until_idle([kind], self._runs, patience(self._runs), self._progress)
                restart_seconds = time.monotonic() - started
                # Wait, so that late writes are counted.
                await asyncio.sleep(QUIET_SECONDS)
                restart = self._end(operator, begun)
        return Measured(
            self._runs, first_jobs, first_requests, first_usage, done, chain, restart, restart_seconds
        )

    async def _show_progress(self) -> None:
        while True:
            self._ledger.read()
            self._progress(
                f"{len(self._ledger.created):,} created, {len(self._ledger.first_jobs):,} with a Job,"
                f" {len(self._ledger.last_stage):,} at their last stage or done"
            )
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _prepare(self, user: KubernetesClient, node: KubernetesClient) -> None:
        for manifest in workload.prerequisites():
            await user.create(manifest)
        # On a busy machine Kopf lists late: its lists must not be counted with the requests of the runs.
        await until(self._watches_all_kinds, patience(self._runs), f"Kopf did not list; see {self._log}")
        async with background(BenchKubelet(node, workload.NAMESPACE).run()):
            await self._until("the Dataset is ready", lambda: self._all_done(user, "Dataset"))

    async def _watches_all_kinds(self) -> bool:
        """Whether the operator's process and its Kopf have both listed every kind."""
        listed = self._audit.lists(self._start, OPERATOR)
        return all(listed[type_.plural] >= 2 for type_ in KIND_TYPES.values())

    async def _all_done(self, user: KubernetesClient, kind: str) -> bool:
        pages = user.pages(KIND_TYPES[kind], workload.NAMESPACE)
        return all([workload.is_done(obj) async for page, _ in pages for obj in page])

    async def _until(self, expected: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until no client writes any more and `condition` is true."""
        await self._ledger.until_quiet(condition, f"{expected}; see {self._log}")

    def _begin(self, operator: OperatorProcess | None = None) -> ProcessUsage:
        self._ledger = RequestLedger(self._audit)
        return self._usage(operator)

    def _end(self, operator: OperatorProcess, begun: ProcessUsage) -> ProcessCost:
        self._ledger.read()
        return ProcessCost(
            requests=self._ledger.requests,
            writes=self._ledger.operator_writes,
            usage=self._usage(operator) - begun,
            peak_bytes=peak_bytes(operator.pid),
        )

    def _usage(self, operator: OperatorProcess | None) -> ProcessUsage:
        processes = Processes(self._plane.layout.run, self._plane.layout.log)
        pids = [pid for name in processes.names() if (pid := processes.pid(name))]
        return measure_usage(operator.pid if operator else None, pids)

    @contextlib.asynccontextmanager
    async def _operator(self) -> AsyncIterator[OperatorProcess]:
        """An active operator; it is stopped at the end of the block."""
        operator = await OperatorProcess.start(
            self._plane.client(OPERATOR), "default", self._log, patience(self._runs)
        )
        try:
            yield operator
            await operator.stop()
        finally:
            await operator.kill()


@dataclass(frozen=True, slots=True)
class SizeComparison:
    """Results for `runs` bare Jobs, TrainJobs and FineTuneJobs."""

    runs: int
    floor: Floor
    peer: Peer
    operator: Measured


def compare(runs: int, folder: Path, progress: Callable[[str], None]) -> SizeComparison:
    """Measure all three workloads, each on an empty control plane of its own.

    Args:
        runs: number of objects of each workload.
        folder: folder for the operator's log.
        progress: called with a line of text when the progress changes.

    Raises:
        BenchError: a workload was not completed.
        ClusterError: a control plane did not start, or a program could not be built.
    """
    progress("bare Jobs")
    floor = measure_floor(runs)
    progress("TrainJobs of Kubeflow")
    peer = measure_peer(runs)
    return SizeComparison(runs, floor, peer, measure(runs, folder, progress))
