# SPDX-License-Identifier: Apache-2.0
"""Measure the operator with many objects that concern one another, and compare each figure with its ceiling.

python -m tools.bench.operator.crowds CROWD [OBJECTS]

The objects are copies of one that the operator made. A cost per event that grows with their number is
quadratic for the operator, although it is small for each object.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import DEVICES, MANAGED_BY, OPERATOR, PROFILE
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from finetune_operator.status.reasons import ConditionType, Reason
from tools.bench.errors import BenchError
from tools.bench.operator import alone, workload
from tools.bench.operator.benchkubelet import BenchKubelet
from tools.bench.operator.controlplanes import client, for_each_concurrently
from tools.bench.operator.copies import SERVER_FIELDS
from tools.bench.operator.deadlines import STUCK_SECONDS, background, patience, until, until_done
from tools.bench.operator.history import create_with_status, probe
from tools.bench.operator.operatorprocess import OperatorProcess
from tools.bench.operator.requestledger import KUBELET, QUIET_SECONDS, USER, RequestLedger
from tools.bench.operator.requestledger import OPERATOR as OPERATOR_USER
from tools.bench.operator.tables import MEBIBYTE
from tools.bench.sheet import Sheet
from tools.bench.usage import peak_bytes
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog

HOLDERS: Final = 12
"""Jobs of others that reserve the budget while runs wait for it."""
BUDGET_HOURS: Final = 10
"""Device hours of the budget. The end of each Job but the first two leaves room for one run."""
SECONDS_BETWEEN_ENDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a phase cost, or its ceilings.

    Attributes:
        requests_per_second: requests of the operator, without leases, per second of the phase.
        writes: writes of the operator.
        stall_seconds: longest time until a response of /healthz.
        peak_bytes: maximum resident memory since the start of the process.
    """

    requests_per_second: float
    writes: float
    stall_seconds: float
    peak_bytes: float

    def above(self, ceilings: "Figures") -> list[str]:
        """The figures that are above their ceilings."""
        own, limits = _rows(self), _rows(ceilings)
        return [
            f"{name}: {own[name]} is more than {limits[name]}"
            for name, field in FIELDS.items()
            if getattr(self, field) > getattr(ceilings, field)
        ]


FIELDS: Final = {
    "requests of the operator per second": "requests_per_second",
    "writes of the operator": "writes",
    "longest response time of /healthz, ms": "stall_seconds",
    "peak memory, MiB": "peak_bytes",
}


def _rows(figures: Figures) -> dict[str, str]:
    values = (
        f"{figures.requests_per_second:.1f}",
        f"{figures.writes:,.0f}",
        f"{figures.stall_seconds * 1000:.0f}",
        f"{figures.peak_bytes / MEBIBYTE:.0f}",
    )
    return dict(zip(FIELDS, values, strict=True))


Step = Callable[["Scene"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Crowd:
    """A kind of crowd.

    Attributes:
        title: title of the table; `{}` is the number of objects.
        objects: number of objects by default.
        kind: kind of the objects.
        prepare: completes the first object, with an operator and a node.
        copy: the manifest of copy `number` of it.
        event: what happens after the start.
        ceilings: ceilings at `objects` objects, by phase, stated before the first measurement. None grows
            with the square of the number of objects.
    """

    title: str
    objects: int
    kind: str
    prepare: Callable[["Scene"], Awaitable[Manifest]]
    copy: Callable[[Manifest, int], Manifest]
    event: Step
    ceilings: dict[str, Figures]


class Scene:
    """One crowd on a control plane."""

    def __init__(
        self, plane: ControlPlane, crowd: Crowd, objects: int, log: Path, progress: Callable[[str], None]
    ) -> None:
        self._plane = plane
        self._crowd = crowd
        self._objects = objects
        self._log = log
        self._progress = progress
        self.user: KubernetesClient
        self._node: KubernetesClient
        self._operator: OperatorProcess
        self._response_seconds: list[float] = []
        self._ledger: RequestLedger

    async def measure(self) -> dict[str, Figures]:
        crowd = self._crowd
        async with client(self._plane, USER) as self.user, client(self._plane, KUBELET) as self._node:
            self._progress("Completing the first object")
            async with self._operating(), background(BenchKubelet(self._node, workload.NAMESPACE).run()):
                original = await crowd.prepare(self)
            await self._fill(original)
            async with self._operating():
                begun = time.monotonic() - self._operator.seconds
                await self._operator.until_idle(
                    [crowd.kind], self._objects, patience(self._objects), self._progress
                )
                start = await self._figures(begun)
                begun = time.monotonic()
                await crowd.event(self)
                event = await self._figures(begun)
        return dict(zip(crowd.ceilings, (start, event), strict=True))

    async def _fill(self, original: Manifest) -> None:
        copies = _made_by_user(original)

        async def fill(number: int) -> None:
            await create_with_status(self.user, self._crowd.copy(copies, number))
            if number % 100 == 0:
                self._progress(f"{number:,} of {self._objects:,} objects created")

        await for_each_concurrently(fill, range(self._objects))

    @contextlib.asynccontextmanager
    async def _operating(self) -> AsyncIterator[None]:
        self._ledger = RequestLedger(AuditLog(self._plane.audit_log))
        self._operator = await OperatorProcess.start(
            self._plane.client(OPERATOR_USER), "default", self._log, patience(self._objects)
        )
        self._response_seconds = []
        try:
            async with background(probe(self._operator, self._response_seconds)):
                yield
                await self._operator.stop()
        finally:
            await self._operator.kill()

    async def _figures(self, begun: float) -> Figures:
        """The figures since `begun`, when the operator no longer writes."""
        await asyncio.sleep(QUIET_SECONDS)
        # Before the audit log is read, which holds up the probes of this process.
        stall_seconds = max(self._response_seconds, default=0.0)
        await self._ledger.until_quiet()
        seconds = time.monotonic() - begun
        figures = Figures(
            self._ledger.requests.of(OPERATOR_USER) / seconds,
            self._ledger.operator_writes,
            stall_seconds,
            peak_bytes(self._operator.pid),
        )
        self._ledger = RequestLedger(AuditLog(self._plane.audit_log))
        self._response_seconds.clear()
        return figures


def _made_by_user(obj: Manifest) -> Manifest:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in SERVER_FIELDS}
    return {**obj, "metadata": metadata}


async def _completed_dataset(scene: Scene) -> Manifest:
    """The DatasetVersion of the team's Dataset."""
    for manifest in workload.prerequisites():
        await scene.user.create(manifest)
    dataset = await until_done(
        *(scene.user, "Dataset", workload.NAMESPACE, "tickets"),
        seconds=2 * STUCK_SECONDS,
        failure="the Dataset is not ready",
    )
    return await _existing(scene, "DatasetVersion", dataset["status"]["latestVersion"])


async def _existing(scene: Scene, kind: str, name: str) -> Manifest:
    found = await scene.user.get(KIND_TYPES[kind], workload.NAMESPACE, name)
    if found is None:
        raise BenchError(f"{kind} {name} is gone")
    return found


def _version_copy(original: Manifest, number: int) -> Manifest:
    digest = f"{number:064x}"
    copy: Manifest = json.loads(json.dumps(original))
    copy["metadata"]["name"] = f"tickets-{number:012x}"
    copy["spec"]["digest"] = f"sha256:{digest}"
    return copy


async def _label_a_version(scene: Scene) -> None:
    version = await _existing(scene, "DatasetVersion", f"tickets-{0:012x}")
    await scene.user.patch_metadata(version, {"labels": {"seen": "again"}})


async def _waiting_run(scene: Scene) -> Manifest:
    """A run that waits for a budget which the Jobs of others reserve."""
    for manifest in workload.prerequisites():
        if manifest["kind"] == "ComputeProfile":
            manifest["spec"]["budget"] = {"period": "Month", "deviceHoursPerNamespace": BUDGET_HOURS}
        await scene.user.create(manifest)
    for number in range(HOLDERS):
        await scene.user.create(_holder(number))
    run = workload.finetunejob(0)
    name = run["metadata"]["name"]
    await scene.user.create(run)

    async def waits() -> Manifest | None:
        found = await _existing(scene, "FineTuneJob", name)
        conditions = (found.get("status") or {}).get("conditions", ())
        state = (ConditionType.RECONCILING, "True", Reason.BUDGET_EXHAUSTED)
        return found if any((c["type"], c["status"], c["reason"]) == state for c in conditions) else None

    found = await until(waits, 2 * STUCK_SECONDS, "the first run does not wait for its budget")
    await scene.user.delete({**found, "metadata": {**found["metadata"]}}, "Background")
    return found


def _holder(number: int) -> Manifest:
    """A suspended Job of another program, with a device of the profile."""
    labels = {MANAGED_BY: OPERATOR, PROFILE: workload.PROFILE, DEVICES: "1"}
    job = workload.bare_job(number)
    return {
        **job,
        "metadata": {**job["metadata"], "name": f"holder-{number:02d}", "labels": labels},
        "spec": {**job["spec"], "suspend": True},
    }


def _run_copy(original: Manifest, number: int) -> Manifest:
    text = json.dumps(original)
    for old, new in (("run-00000", f"run-{number + 1:05d}"), ("line-00000", f"line-{number + 1:05d}")):
        text = text.replace(old, new)
    copy: Manifest = json.loads(text)
    return copy


async def _end_jobs(scene: Scene) -> None:
    """Delete the Jobs of others one after the other. Each end leaves room for one run at most."""
    for number in range(HOLDERS):
        job = await scene.user.get(JOB, workload.NAMESPACE, f"holder-{number:02d}")
        if job is None:
            raise BenchError(f"Job holder-{number:02d} is gone")
        await scene.user.delete(job, "Background")
        await asyncio.sleep(SECONDS_BETWEEN_ENDS)


CROWDS: Final = {
    "versions": Crowd(
        title="{} versions of one Dataset",
        objects=20_000,
        kind="DatasetVersion",
        prepare=_completed_dataset,
        copy=_version_copy,
        event=_label_a_version,
        ceilings={
            # Each of three lists has a page per 100 versions; nothing is read per version, or written.
            "start": Figures(25, 5, 0.25, 300 * MEBIBYTE),
            "one changed label": Figures(5, 2, 0.1, 300 * MEBIBYTE),
        },
    ),
    "budget": Crowd(
        title="{} runs that wait for a budget",
        objects=1_000,
        kind="FineTuneJob",
        prepare=_waiting_run,
        copy=_run_copy,
        event=_end_jobs,
        ceilings={
            "start": Figures(25, 5, 0.25, 300 * MEBIBYTE),
            # A run that starts writes a Job, statuses and events; those that wait write nothing.
            f"{HOLDERS} Jobs of others end": Figures(20, HOLDERS * 10, 0.1, 300 * MEBIBYTE),
        },
    ),
}

app = typer.Typer(add_completion=False)


def sheet(crowd: Crowd, objects: int, phases: dict[str, Figures]) -> Sheet:
    """The results as a table, each with its ceiling."""
    rows: list[tuple[str, ...]] = []
    for name in FIELDS:
        cells = [
            f"{_rows(figures)[name]} (≤ {_rows(crowd.ceilings[phase])[name]})"
            for phase, figures in phases.items()
        ]
        rows.append((name, *cells))
    return Sheet(crowd.title.format(f"{objects:,}"), ("", *phases), tuple(rows))


@app.command()
def crowds(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(CROWDS)}.")],
    objects: Annotated[int | None, typer.Argument(help="Number of objects.")] = None,
    page: alone.Page = True,
    logs: alone.Logs = alone.LOGS,
) -> None:
    """Measure the operator with a crowd, and fail if a figure is above its ceiling."""
    if name not in CROWDS:
        raise typer.BadParameter(f"there is no crowd {name}; choose one of {', '.join(CROWDS)}")
    crowd, above = CROWDS[name], list[str]()
    number = crowd.objects if objects is None else objects

    def table(plane: ControlPlane, progress: Callable[[str], None]) -> Sheet:
        log = logs / f"operator-{name}-{number}.log"
        phases = asyncio.run(Scene(plane, crowd, number, log, progress).measure())
        for phase, figures in phases.items():
            above.extend(f"{phase}: {each}" for each in figures.above(crowd.ceilings[phase]))
        return sheet(crowd, number, phases)

    begin = f"<!-- Written by python -m tools.bench.operator.crowds {name} from here -->"
    alone.measure(name, table, begin if page else None, logs)
    if above:
        print("bench: " + "; ".join(above), file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
