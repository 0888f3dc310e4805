# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait in one LocalQueue, and Jobs in one namespace whose pods a quota refuses.

The benchmark itself does what Kueue would do: each suspended Job gets a Workload that waits for quota. There
is no visibility API, so positions are unknown.
"""

import asyncio
import json
from typing import Any, Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Unavailable
from finetune_operator.engine.resources import JOB, LOCAL_QUEUE, WORKLOAD, ResourceType
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.related_types import JOB_UID
from tools.bench.operator import workload
from tools.bench.operator.control_planes import MAX_CONCURRENT_REQUESTS, client, create
from tools.bench.operator.crowds.crowd import (
    IDLE_SECONDS,
    NAMESPACE,
    Ceilings,
    Crowd,
    CrowdScene,
    numbered,
    reconciling,
)
from tools.bench.operator.deadlines import background
from tools.bench.operator.request_ledger import USER

KUEUE: Final = "kueue"
"""User of the simulated Kueue."""
QUEUE: Final = "gpus"
MESSAGE: Final = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor all"
WATCH_SECONDS: Final = 600


def _definition(type_: ResourceType) -> Manifest:
    group, _, version = type_.api_version.partition("/")
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    names = {"kind": type_.kind, "plural": type_.plural, "singular": type_.kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # The API server requires it for groups of *.k8s.io.
        "metadata": {
            "name": f"{type_.plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, simulated"},
        },
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


class _Kueue:
    """Makes a Workload for each Job of the namespace, with the template of its pods, as Kueue does."""

    def __init__(self, cluster: KubernetesClient) -> None:
        self._cluster = cluster
        self._jobs: asyncio.Queue[Manifest] = asyncio.Queue()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            for _ in range(MAX_CONCURRENT_REQUESTS):
                tasks.create_task(self._work())

    async def _watch(self) -> None:
        seen: set[str] = set()
        while True:
            try:
                async for event in self._cluster.watch(JOB, NAMESPACE, "", "", seconds=WATCH_SECONDS):
                    uid = event["object"]["metadata"].get("uid")
                    if event["type"] == "ADDED" and uid not in seen:
                        seen.add(uid)
                        self._jobs.put_nowait(event["object"])
            except Unavailable:
                continue

    async def _work(self) -> None:
        while True:
            job = await self._jobs.get()
            identity = {
                "apiVersion": WORKLOAD.api_version,
                "kind": WORKLOAD.kind,
                "metadata": {
                    "name": f"job-{job['metadata']['name']}",
                    "namespace": NAMESPACE,
                    "labels": {JOB_UID: job["metadata"]["uid"]},
                },
            }
            pods = [{"name": "main", "count": 1, "template": job["spec"]["template"]}]
            created = await self._cluster.create(
                identity | {"spec": {"queueName": QUEUE, "active": True, "podSets": pods}}
            )
            reserved = {
                "type": "QuotaReserved",
                "status": "False",
                "reason": "Pending",
                "message": MESSAGE,
                "lastTransitionTime": created["metadata"]["creationTimestamp"],
                "observedGeneration": 1,
            }
            requested = [{"name": "main", "resources": {"cpu": "1100m", "memory": "2Gi"}}]
            status = {"conditions": [reserved], "resourceRequests": requested}
            await self._cluster.apply_status(identity | {"status": status})


async def _measure_queued(stage: CrowdScene) -> None:
    for type_ in (WORKLOAD, LOCAL_QUEUE):
        stage.plane.kubectl.define(json.dumps(_definition(type_)))
    queue = {
        "apiVersion": LOCAL_QUEUE.api_version,
        "kind": LOCAL_QUEUE.kind,
        "metadata": {"name": QUEUE, "namespace": NAMESPACE},
        "spec": {"clusterQueue": "all"},
    }
    profile = workload.profile(kueue={"queues": {"cpu": QUEUE}})
    stage.apply(workload.namespace(NAMESPACE), queue, *workload.claims(NAMESPACE), profile)
    async with (
        client(stage.plane, USER) as user,
        client(stage.plane, KUEUE) as kueue,
        stage.operator() as operator,
    ):
        async with background(_Kueue(kueue).run()), operator.phase("queued"):
            await create(user, (workload.dataset(name, NAMESPACE) for name in numbered("rows", stage.size)))
            await stage.until_all(
                user, "Dataset", "show why they wait", lambda each: MESSAGE in reconciling(each)[1]
            )
        async with operator.phase("waiting"):
            await asyncio.sleep(IDLE_SECONDS)


QUEUED: Final = Crowd(
    "queued",
    "{size} Jobs that wait in one LocalQueue",
    5000,
    {
        "queued": Ceilings(requests=41000, writes=40000, stall_seconds=0.25, peak_mebibytes=400),
        "waiting": Ceilings(requests=450, writes=500, stall_seconds=0.25, peak_mebibytes=400),
    },
    _measure_queued,
)


QUOTA: Final[dict[str, Any]] = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "full", "namespace": NAMESPACE},
    "spec": {"hard": {"pods": "0"}},
}


async def _measure_refused(stage: CrowdScene) -> None:
    stage.apply(workload.namespace(NAMESPACE), QUOTA, *workload.claims(NAMESPACE), workload.profile())
    async with client(stage.plane, USER) as user, stage.operator() as operator:
        async with operator.phase("refused"):
            await create(user, (workload.dataset(name, NAMESPACE) for name in numbered("rows", stage.size)))
            await stage.until_all(
                user, "Dataset", "are refused", lambda each: reconciling(each)[0] == "QuotaExceeded"
            )
        async with operator.phase("waiting"):
            await asyncio.sleep(IDLE_SECONDS)


REFUSED: Final = Crowd(
    "refused",
    "{size} Jobs in one namespace that a quota refuses",
    1000,
    {
        "refused": Ceilings(requests=11000, writes=10000, stall_seconds=0.25, peak_mebibytes=250),
        "waiting": Ceilings(requests=270, writes=100, stall_seconds=0.25, peak_mebibytes=250),
    },
    _measure_refused,
)
