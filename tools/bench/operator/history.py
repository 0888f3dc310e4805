"""How an operator starts next to runs that ended long ago.

python -m tools.bench.operator.history [RUNS]

Each has two Checkpoints, of which one is promoted; half of the runs are of one model line, each of the others
of a line of its own. They are copies of one run that the operator has seen through.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.errors import BenchError
from tools.bench.operator import alone, workload
from tools.bench.operator.benchkubelet import BenchKubelet
from tools.bench.operator.controlplanes import client, for_each_concurrently
from tools.bench.operator.copies import Copies, checkpoint_name
from tools.bench.operator.operatorprocess import OperatorProcess
from tools.bench.operator.requestledger import KUBELET, OPERATOR, QUIET_SECONDS, USER, RequestLedger
from tools.bench.operator.tables import MEBIBYTE
from tools.bench.operator.waiting import background, patience, until_done
from tools.bench.sheet import Sheet
from tools.bench.usage import peak_bytes
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.cluster.processes import resident_bytes

LINE: Final = "routing"
"""The model line of half of the runs."""
KINDS: Final = ("FineTuneJob", "Checkpoint")
"""What a history consists of."""
PROBE_SECONDS: Final = 0.02
PROBE_TIMEOUT_SECONDS: Final = 300
"""After which an operator that does not answer its probe counts as dead."""
ORIGINAL_SECONDS: Final = 120

BEGIN: Final = "<!-- Written by python -m tools.bench.operator.history from here -->"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Phase:
    """What a part of the operator's life came to.

    Attributes:
        active: from the start of the process until it worked, in seconds; None where it worked before.
        seconds: until it was over.
        silence: the longest time in which /healthz did not answer, in seconds.
        passes: over Checkpoints and FineTuneJobs.
        writes: of the operator.
        resident: bytes at its end.
        peak: bytes, up to its end.
    """

    active: float | None
    seconds: float
    silence: float
    passes: float
    writes: int
    resident: int
    peak: int


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
            async with self._operator() as (operator, silences):
                active, started = operator.seconds, time.monotonic() - operator.seconds
                await self._until_idle(operator, 3 * self._runs)
                start = await self._phase(operator, silences, started, active=active)
                begun, before = time.monotonic(), await operator.passes(KINDS)
                silences.clear()
                label = {"labels": {"seen": "again"}}
                name = checkpoint_name(0)
                checkpoint = await user.get(KIND_TYPES["Checkpoint"], workload.NAMESPACE, name)
                if checkpoint is None:
                    raise BenchError(f"Checkpoint {name} is gone")
                await user.patch_metadata(checkpoint, label)
                await self._until_idle(operator, before + 1)
                event = await self._phase(operator, silences, begun, before)
        return {"start": start, "one label": event}

    async def _original(self, user: KubernetesClient, node: KubernetesClient) -> Copies:
        """See one run through."""
        self._progress("one run is seen through")
        run = workload.finetunejob(0)
        async with self._operator(), background(BenchKubelet(node, workload.NAMESPACE).run()):
            for manifest in (*workload.prerequisites(), run):
                await user.create(manifest)
            job = await until_done(
                *(user, "FineTuneJob", workload.NAMESPACE, run["metadata"]["name"]),
                seconds=ORIGINAL_SECONDS,
                failure=f"the first run is not done: see {self._log}",
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
            job = await _create(user, copies.job(number, model))
            for checkpoint in copies.checkpoints(number, model, job["metadata"]["uid"]):
                await _create(user, checkpoint)
            if number % 100 == 0:
                self._progress(f"{number:,} of {self._runs:,} runs are there")

        await for_each_concurrently(fill, range(self._runs))

    @contextlib.asynccontextmanager
    async def _operator(self) -> AsyncIterator[tuple[OperatorProcess, list[float]]]:
        """An active operator, and the silences of its /healthz from its first answer on."""
        self._ledger = RequestLedger(AuditLog(self._plane.audit_log))
        operator = await OperatorProcess.start(
            self._plane.client(OPERATOR), "default", self._log, patience(self._runs)
        )
        silences: list[float] = []
        try:
            async with background(_probe(operator, silences)):
                yield operator, silences
                await operator.stop()
        finally:
            await operator.kill()

    async def _until_idle(self, operator: OperatorProcess, passes: float) -> None:
        await operator.until_idle(KINDS, passes, patience(self._runs), self._progress)

    async def _phase(
        self,
        operator: OperatorProcess,
        silences: list[float],
        begun: float,
        passes: float = 0,
        active: float | None = None,
    ) -> Phase:
        seconds = time.monotonic() - begun
        # Long enough to see whether it writes.
        await asyncio.sleep(QUIET_SECONDS)
        self._ledger.read()
        return Phase(
            active=active,
            seconds=seconds,
            silence=max(silences, default=0.0),
            passes=await operator.passes(KINDS) - passes,
            writes=self._ledger.operator_writes,
            resident=resident_bytes(operator.pid),
            peak=peak_bytes(operator.pid),
        )


async def _create(user: KubernetesClient, manifest: Manifest) -> Manifest:
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


async def _probe(operator: OperatorProcess, silences: list[float]) -> None:
    """Ask /healthz again and again."""
    async with httpx.AsyncClient(trust_env=False, timeout=PROBE_TIMEOUT_SECONDS) as http:
        while True:
            asked = time.monotonic()
            with contextlib.suppress(httpx.TransportError):
                await http.get(f"http://127.0.0.1:{operator.port}/healthz")
                silences.append(time.monotonic() - asked)
            await asyncio.sleep(PROBE_SECONDS)


def sheet(runs: int, phases: dict[str, Phase]) -> Sheet:
    """The figures as a table."""
    rows: dict[str, Callable[[Phase], Any]] = {
        "until its term begins, s": lambda each: "" if each.active is None else f"{each.active:.1f}",
        "until all is looked at, s": lambda each: f"{each.seconds:.1f}",
        "longest silence of /healthz, ms": lambda each: f"{each.silence * 1000:.0f}",
        "passes": lambda each: f"{each.passes:,.0f}",
        "writes": lambda each: each.writes,
        "resident at its end, MiB": lambda each: f"{each.resident / MEBIBYTE:.0f}",
        "peak memory, MiB": lambda each: f"{each.peak / MEBIBYTE:.0f}",
    }
    return Sheet(
        f"{runs:,} ended runs with {2 * runs:,} Checkpoints, {runs // 2:,} of the runs in one model line",
        ("", *phases),
        tuple((name, *(str(of(each)) for each in phases.values())) for name, of in rows.items()),
    )


@app.command()
def history(
    runs: Annotated[int, typer.Argument(help="How many FineTuneJobs that have ended.")] = 10_000,
    page: alone.Page = True,
    logs: alone.Logs = alone.LOGS,
) -> None:
    """Measure the start of the operator on a control plane of its own beside a long history."""

    def table(plane: ControlPlane, progress: Callable[[str], None]) -> Sheet:
        return sheet(runs, asyncio.run(_History(plane, runs, logs, progress).measure()))

    alone.measure("history", table, BEGIN if page else None, logs)


if __name__ == "__main__":
    app()
