# SPDX-License-Identifier: Apache-2.0
"""A crowd: many objects in one state, the phases in which it is measured, and their ceilings."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.operator.deadlines import background, patience, until
from tools.bench.operator.health_probe import HealthProbe
from tools.bench.operator.operator_process import OperatorProcess
from tools.bench.operator.request_ledger import OPERATOR, QUIET_SECONDS, RequestLedger
from tools.bench.operator.tables import MEBIBYTE
from tools.bench.page import BenchError, Sheet
from tools.bench.program import peak_bytes, processor_seconds
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog

NAMESPACE: Final = "crowd"
IDLE_SECONDS: Final = 90.0
"""Duration of a phase in which nothing changes: three of the operator's intervals of 30 s."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bounds of a phase at the crowd's full size, stated before they were measured.

    Attributes:
        requests: requests of the operator. No rate: in a phase that ends with its work, a faster operator or
            machine has a higher one.
        writes: those of the requests that write, with events.
        stall_seconds: longest time until a response of /healthz.
        peak_mebibytes: maximum resident memory of the process since its start.
    """

    requests: float
    writes: float
    stall_seconds: float
    peak_mebibytes: float


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """What was measured in a phase; the first four figures are those of `Ceilings`."""

    requests: float
    writes: float
    stall_seconds: float
    peak_mebibytes: float
    seconds: float
    lists: int
    processor_seconds: float

    def exceeded(self, ceilings: Ceilings) -> list[str]:
        """Names of the figures above their ceilings."""
        return [
            name for name in Ceilings.__dataclass_fields__ if getattr(self, name) > getattr(ceilings, name)
        ]


class CrowdScene:
    """A control plane on which a crowd gathers, and the phases measured so far.

    Args:
        plane: the control plane.
        size: number of objects.
        log: file for the operator's log.
        progress: shows a line of text.
    """

    def __init__(self, plane: ControlPlane, size: int, log: Path, progress: Callable[[str], None]) -> None:
        self.plane = plane
        self.size = size
        self.log = log
        self.progress = progress
        self.phases: dict[str, PhaseFigures] = {}
        self._audit = AuditLog(plane.audit_log)

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator["Watched"]:
        """An active operator; it is stopped at the end of the block."""
        began, ledger = time.monotonic(), RequestLedger(self._audit)
        operator = await OperatorProcess.start(
            self.plane.client(OPERATOR), "default", self.log, patience(self.size)
        )
        probe = HealthProbe(operator.port)
        try:
            async with background(probe.run()):
                yield Watched(self, operator, probe, began, ledger)
                await operator.stop()
        finally:
            await operator.kill()

    def apply(self, *manifests: Manifest) -> None:
        """Apply manifests with kubectl, in this order."""
        text = "\n---\n".join(map(json.dumps, manifests))
        self.plane.kubectl.run("apply", "--server-side", "--filename=-", text=text)

    def ledger(self) -> RequestLedger:
        """A ledger that counts from now on."""
        return RequestLedger(self._audit)

    async def until_all(
        self, cluster: KubernetesClient, kind: str, expected: str, is_so: Callable[[Manifest], bool]
    ) -> None:
        """Wait until the whole crowd is in a state.

        Raises:
            BenchError: it was not in time.
        """

        async def all_are() -> bool:
            pages = cluster.pages(KIND_TYPES[kind], NAMESPACE)
            number = sum([is_so(obj) async for page, _ in pages for obj in page])
            self.progress(f"{number:,} of {self.size:,} {expected}")
            await asyncio.sleep(2)
            return number >= self.size

        await until(
            all_are, 5 * patience(self.size), f"not all {self.size:,} {expected} in time; see {self.log}"
        )


class Watched:
    """A running operator that is measured."""

    def __init__(
        self,
        stage: CrowdScene,
        process: OperatorProcess,
        probe: HealthProbe,
        began: float,
        ledger: RequestLedger,
    ) -> None:
        self.process = process
        self._stage = stage
        self._probe = probe
        self._start = began, ledger

    @contextlib.asynccontextmanager
    async def phase(self, name: str, *, from_start: bool = False) -> AsyncIterator[None]:
        """Measure the block as a phase. `from_start`: with everything since the start of the process."""
        if from_start:
            (began, ledger), used = self._start, 0.0
        else:
            began, ledger = time.monotonic(), self._stage.ledger()
            used = processor_seconds(self.process.pid)
        self._stage.progress(name)
        yield
        seconds = time.monotonic() - began
        stall_seconds = await self._probe.longest(since=began)
        ledger.read()
        self._stage.phases[name] = PhaseFigures(
            requests=ledger.requests.of(OPERATOR),
            writes=ledger.operator_writes,
            stall_seconds=stall_seconds,
            peak_mebibytes=peak_bytes(self.process.pid) / MEBIBYTE,
            seconds=seconds,
            lists=ledger.requests.by[OPERATOR, "list"],
            processor_seconds=processor_seconds(self.process.pid) - used,
        )

    async def until_quiet(self) -> None:
        """Wait until no client writes and the operator lists nothing any more, so that all is counted."""
        ledger = self._stage.ledger()
        await asyncio.sleep(QUIET_SECONDS)
        await until(ledger.is_idle, patience(self._stage.size), "the operator still lists or writes")

    async def until_reconciled(self, kind: str, passes: float) -> None:
        """Wait until there were this many passes over a kind, since the start, and the queue is empty."""
        size = self._stage.size
        await self.process.until_idle([kind], passes, 5 * patience(size), self._stage.progress)


@dataclass(frozen=True, slots=True)
class Crowd:
    """One scenario.

    Attributes:
        name: word for the command line.
        title: title of the table, with `{size}`.
        size: full number of objects.
        ceilings: by phase, in their order.
        measure: measures all phases.
    """

    name: str
    title: str
    size: int
    ceilings: dict[str, Ceilings]
    measure: Callable[[CrowdScene], Coroutine[Any, Any, None]]

    def exceeded(self, phases: dict[str, PhaseFigures]) -> list[str]:
        """Figures above their ceilings, as text."""
        return [
            f"{self.name}, {phase}: {name} is {getattr(phases[phase], name):.2f}, above"
            f" {getattr(ceilings, name)}"
            for phase, ceilings in self.ceilings.items()
            for name in phases[phase].exceeded(ceilings)
        ]

    def sheet(self, size: int, phases: dict[str, PhaseFigures]) -> Sheet:
        """The results with their ceilings, one column per phase."""
        missing = self.ceilings.keys() - phases.keys()
        if missing:
            raise BenchError(f"{self.name} did not measure {', '.join(sorted(missing))}")
        rows: dict[str, Callable[[PhaseFigures, Ceilings], str]] = {
            "requests": lambda found, most: f"{found.requests:,} (≤ {most.requests:,})",
            "writes": lambda found, most: f"{found.writes:,} (≤ {most.writes:,})",
            "longest response time of /healthz, ms": lambda found, most: (
                f"{found.stall_seconds * 1000:.0f} (≤ {most.stall_seconds * 1000:g})"
            ),
            "peak memory, MiB": lambda found, most: f"{found.peak_mebibytes:.0f} (≤ {most.peak_mebibytes:g})",
            "duration, s": lambda found, _: f"{found.seconds:.1f}",
            "requests per second": lambda found, _: f"{found.requests / found.seconds:.2f}",
            "lists": lambda found, _: f"{found.lists:,}",
            "processor time, s": lambda found, _: f"{found.processor_seconds:.1f}",
        }
        pairs = [(phases[name], ceilings) for name, ceilings in self.ceilings.items()]
        return Sheet(
            self.title.format(size=f"{size:,}"),
            ("", *self.ceilings),
            tuple((name, *(of(*pair) for pair in pairs)) for name, of in rows.items()),
        )


def numbered(word: str, size: int) -> Iterable[str]:
    """Names of the objects of a crowd."""
    return (f"{word}-{number:05d}" for number in range(size))


def reconciling(obj: Manifest) -> tuple[str, str]:
    """Reason and message of the object's condition Reconciling; empty without one."""
    conditions = obj.get("status", {}).get("conditions", ())
    found: dict[str, str] = next((each for each in conditions if each["type"] == "Reconciling"), {})
    return found.get("reason", ""), found.get("message", "")
