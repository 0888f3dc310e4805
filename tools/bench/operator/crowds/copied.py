# SPDX-License-Identifier: Apache-2.0
"""Crowds of objects that concern one another: a start of the operator among them, and one event.

The objects are copies of one that the operator made. A cost per event that grows with their number is
quadratic for the operator, although it is small for each object.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from finetune_operator.api.labels import MANAGED_BY, OPERATOR, PROFILE
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.labels import DEVICES
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from finetune_operator.status.reasons import ConditionType, Reason
from tools.bench.operator import workload
from tools.bench.operator.bench_kubelet import BenchKubelet
from tools.bench.operator.control_planes import client, for_each_concurrently
from tools.bench.operator.crowds.crowd import Ceilings, Crowd, CrowdScene
from tools.bench.operator.deadlines import STUCK_SECONDS, background, until, until_done
from tools.bench.operator.history import create_with_status
from tools.bench.operator.request_ledger import KUBELET, USER
from tools.bench.operator.workload import SERVER_FIELDS
from tools.bench.page import BenchError

HOLDERS: Final = 12
"""Jobs of others that reserve the budget while runs wait for it."""
BUDGET_HOURS: Final = 10
"""Device hours of the budget. The end of each Job but the first two leaves room for one run."""
SECONDS_BETWEEN_ENDS: Final = 1.0
CHANGED: Final = "one changed label"
ENDED: Final = f"{HOLDERS} Jobs of others end"


@dataclass(frozen=True, slots=True)
class _Copied:
    """How a crowd gathers, and what happens to it.

    Attributes:
        kind: kind of the objects.
        prepare: completes the first object, with an operator and a node.
        copy: the manifest of copy `number` of it.
        event: what happens after the start.
        name: name of the phase with the event.
    """

    kind: str
    prepare: Callable[[KubernetesClient], Awaitable[Manifest]]
    copy: Callable[[Manifest, int], Manifest]
    event: Callable[[KubernetesClient], Awaitable[None]]
    name: str

    async def measure(self, stage: CrowdScene) -> None:
        async with client(stage.plane, USER) as user, client(stage.plane, KUBELET) as node:
            stage.progress("Completing the first object")
            async with stage.operator(), background(BenchKubelet(node, workload.NAMESPACE).run()):
                original = await self.prepare(user)
            await self._fill(stage, user, _made_by_user(original))
            async with stage.operator() as operator:
                async with operator.phase("start", from_start=True):
                    await operator.until_reconciled(self.kind, stage.size)
                    await operator.until_quiet()
                async with operator.phase(self.name):
                    await self.event(user)
                    await operator.until_quiet()

    async def _fill(self, stage: CrowdScene, user: KubernetesClient, original: Manifest) -> None:
        async def fill(number: int) -> None:
            await create_with_status(user, self.copy(original, number))
            if number % 100 == 0:
                stage.progress(f"{number:,} of {stage.size:,} objects created")

        await for_each_concurrently(fill, range(stage.size))


def _made_by_user(obj: Manifest) -> Manifest:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in SERVER_FIELDS}
    return {**obj, "metadata": metadata}


async def _completed_dataset(user: KubernetesClient) -> Manifest:
    """The DatasetVersion of the team's Dataset."""
    for manifest in workload.prerequisites():
        await user.create(manifest)
    dataset = await until_done(
        *(user, "Dataset", workload.NAMESPACE, "tickets"),
        seconds=2 * STUCK_SECONDS,
        failure="the Dataset is not ready",
    )
    return await _existing(user, "DatasetVersion", dataset["status"]["latestVersion"])


async def _existing(user: KubernetesClient, kind: str, name: str) -> Manifest:
    found = await user.get(KIND_TYPES[kind], workload.NAMESPACE, name)
    if found is None:
        raise BenchError(f"{kind} {name} is gone")
    return found


def _version_copy(original: Manifest, number: int) -> Manifest:
    digest = f"{number:064x}"
    copy: Manifest = json.loads(json.dumps(original))
    copy["metadata"]["name"] = f"tickets-{number:012x}"
    copy["spec"]["digest"] = f"sha256:{digest}"
    return copy


async def _label_a_version(user: KubernetesClient) -> None:
    version = await _existing(user, "DatasetVersion", f"tickets-{0:012x}")
    await user.patch_metadata(version, {"labels": {"seen": "again"}})


async def _waiting_run(user: KubernetesClient) -> Manifest:
    """A run that waits for a budget which the Jobs of others reserve."""
    for manifest in workload.prerequisites():
        if manifest["kind"] == "ComputeProfile":
            manifest["spec"]["cost"] = {
                "budget": {"period": "Month", "deviceHoursPerNamespace": BUDGET_HOURS}
            }
        await user.create(manifest)
    for number in range(HOLDERS):
        await user.create(_holder(number))
    run = workload.finetunejob(0)
    name = run["metadata"]["name"]
    await user.create(run)

    async def waits() -> Manifest | None:
        found = await _existing(user, "FineTuneJob", name)
        conditions = (found.get("status") or {}).get("conditions", ())
        state = (ConditionType.RECONCILING, "True", Reason.BUDGET_EXHAUSTED)
        return found if any((c["type"], c["status"], c["reason"]) == state for c in conditions) else None

    found = await until(waits, 2 * STUCK_SECONDS, "the first run does not wait for its budget")
    await user.delete({**found, "metadata": {**found["metadata"]}}, "Background")
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


async def _end_jobs(user: KubernetesClient) -> None:
    """Delete the Jobs of others one after the other. Each end leaves room for one run at most."""
    for number in range(HOLDERS):
        job = await user.get(JOB, workload.NAMESPACE, f"holder-{number:02d}")
        if job is None:
            raise BenchError(f"Job holder-{number:02d} is gone")
        await user.delete(job, "Background")
        await asyncio.sleep(SECONDS_BETWEEN_ENDS)


VERSIONS: Final = Crowd(
    "versions",
    "{size} versions of one Dataset",
    20_000,
    {
        # Kopf's list has a page per 25 versions, and two other lists have one per 100; nothing is read per
        # version, or written.
        "start": Ceilings(requests=1800, writes=5, stall_seconds=0.25, peak_mebibytes=300),
        CHANGED: Ceilings(requests=10, writes=2, stall_seconds=0.1, peak_mebibytes=300),
    },
    _Copied("DatasetVersion", _completed_dataset, _version_copy, _label_a_version, CHANGED).measure,
)
BUDGET: Final = Crowd(
    "budget",
    "{size} runs that wait for a budget",
    1000,
    {
        "start": Ceilings(requests=150, writes=5, stall_seconds=0.25, peak_mebibytes=300),
        # A run that starts writes a Job, statuses and events; those that wait write nothing.
        ENDED: Ceilings(requests=HOLDERS * 20, writes=HOLDERS * 10, stall_seconds=0.1, peak_mebibytes=300),
    },
    _Copied("FineTuneJob", _waiting_run, _run_copy, _end_jobs, ENDED).measure,
)
