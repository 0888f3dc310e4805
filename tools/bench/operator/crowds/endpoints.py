# SPDX-License-Identifier: Apache-2.0
"""Endpoints that follow one model line, each behind a gateway.

The benchmark itself starts the pods and accepts the routes.
"""

import asyncio
import time
from typing import Final

import httpx

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Conflict, Unavailable
from finetune_operator.engine.resources import HTTP_ROUTE
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES
from tools.bench.operator import workload
from tools.bench.operator.bench_kubelet import BenchKubelet
from tools.bench.operator.control_planes import client, create
from tools.bench.operator.crowds.crowd import IDLE_SECONDS, NAMESPACE, Ceilings, Crowd, CrowdScene, numbered
from tools.bench.operator.deadlines import background
from tools.bench.operator.request_ledger import KUBELET, USER
from tools.bench.page import BenchError
from tools.cluster import gateway_api
from tools.fakepods import digest

LINE: Final = "routing"
KIND: Final = "InferenceDeployment"
GATEWAY: Final = "gateway"
"""User of the simulated controller of the Gateway."""
WATCH_SECONDS: Final = 600
SCRAPES: Final = 20
PROFILE: Final = {"accelerator": {"resource": "cpu", "maxPerPod": 4}, "limits": {"concurrentRollouts": 1000}}


def _checkpoint(name: str) -> Manifest:
    """A Checkpoint without its run, which a person has approved."""
    base = "pvc://models/tiny"
    hyperparameters = {
        "epochs": 2,
        "learningRate": 2e-4,
        "batchSize": 4,
        "warmupRatio": 0.05,
        "scheduler": "Linear",
        "weightDecay": 0,
        "maxSequenceLength": 256,
        "seed": 0,
        "totalSteps": 40,
        "saveEverySteps": 10,
    }
    lineage = {
        "baseModel": {"uri": base, "digest": digest("base", base)},
        "datasetVersion": "tickets-1a2b3c4d5e6f",
        "job": {"name": "gone", "uid": "gone"},
        "method": {"objective": "SFT", "type": "LoRA"},
        "adapter": {"r": 16},
        "hyperparameters": hyperparameters,
        "trainerImage": "registry.example/trainer:1",
    }
    spec = {
        "modelLine": LINE,
        "digest": digest(name),
        "type": "Adapter",
        "step": 40,
        "epoch": 2,
        "uri": f"pvc://artifacts/checkpoints/{digest(name).removeprefix('sha256:')}",
        "lineage": lineage,
        "approval": {"state": "Approved", "reason": "for the benchmark"},
    }
    return workload.ours("Checkpoint", NAMESPACE, name, spec)


def _endpoint(name: str) -> Manifest:
    gateway = {"parentRefs": [{"name": "public", "namespace": "infra"}], "hostnames": [f"{name}.example.com"]}
    spec = {
        "baseModel": {"uri": "pvc://models/tiny"},
        "models": [{"name": LINE, "follow": {"modelLine": LINE}}],
        "compute": {"profile": workload.PROFILE},
        "traffic": {"gateway": gateway},
    }
    return workload.ours(KIND, NAMESPACE, name, spec)


async def _accept(cluster: KubernetesClient) -> None:
    """Accept each generation of each route, as the controller of a Gateway does."""
    accepted: dict[str, int] = {}
    while True:
        try:
            async for event in cluster.watch(HTTP_ROUTE, NAMESPACE, "", "", seconds=WATCH_SECONDS):
                route = event["object"]
                metadata = route["metadata"]
                if event["type"] == "BOOKMARK" or accepted.get(metadata["uid"]) == metadata["generation"]:
                    continue
                accepted[metadata["uid"]] = metadata["generation"]
                try:
                    await cluster.apply_status(_accepted(route))
                except Conflict:
                    continue
        except Unavailable:
            continue


def _accepted(route: Manifest) -> Manifest:
    metadata = route["metadata"]
    conditions = [
        {
            "type": type_,
            "status": "True",
            "reason": type_,
            "message": "",
            "observedGeneration": metadata["generation"],
            "lastTransitionTime": metadata["creationTimestamp"],
        }
        for type_ in ("Accepted", "ResolvedRefs")
    ]
    parents = [
        {"parentRef": each, "controllerName": "example.com/gateway", "conditions": conditions}
        for each in route["spec"]["parentRefs"]
    ]
    identity = {key: metadata[key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": identity,
        "status": {"parents": parents},
    }


async def _measure(stage: CrowdScene) -> None:
    stage.plane.kubectl.define(gateway_api.route_definition())
    stage.apply(
        workload.namespace(NAMESPACE),
        *workload.claims(NAMESPACE),
        workload.ours("ComputeProfile", "", workload.PROFILE, PROFILE),
    )
    async with (
        client(stage.plane, USER) as user,
        client(stage.plane, KUBELET) as node,
        client(stage.plane, GATEWAY) as gateway,
        background(BenchKubelet(node, NAMESPACE).run(), _accept(gateway)),
    ):
        await user.create(_checkpoint("first"))
        async with stage.operator() as operator, operator.phase("created"):
            await create(user, map(_endpoint, numbered("desk", stage.size)))
            await _until_served(stage, user, "first")
        async with stage.operator() as operator:
            async with operator.phase("start", from_start=True):
                await operator.until_reconciled(KIND, stage.size)
            async with operator.phase("idle"):
                await asyncio.sleep(IDLE_SECONDS)
            async with operator.phase("scraped"):
                await _scrape(operator.process.port)
            before = await operator.process.passes([KIND])
            async with operator.phase("profile edited"):
                stage.apply(
                    workload.ours(
                        "ComputeProfile",
                        "",
                        workload.PROFILE,
                        {**PROFILE, "limits": {"concurrentRollouts": 999}},
                    )
                )
                await operator.until_reconciled(KIND, before + stage.size)
            async with operator.phase("new champion"):
                await user.create(_checkpoint("second"))
                await _until_served(stage, user, "second")


async def _until_served(stage: CrowdScene, user: KubernetesClient, checkpoint: str) -> None:
    def is_served(endpoint: Manifest) -> bool:
        models = endpoint.get("status", {}).get("models", ())
        return workload.is_done(endpoint) and [each.get("checkpoint") for each in models] == [checkpoint]

    await stage.until_all(user, KIND_TYPES[KIND].kind, f"serve {checkpoint}", is_served)


async def _scrape(port: int) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        for _ in range(SCRAPES):
            began = time.monotonic()
            text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
            if "finetune_endpoint_models{" not in text:
                raise BenchError("the metrics have no series of an endpoint")
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))


ENDPOINTS: Final = Crowd(
    "endpoints",
    "{size} endpoints that follow one model line",
    1000,
    {
        "created": Ceilings(requests=26000, writes=25000, stall_seconds=0.25, peak_mebibytes=400),
        "start": Ceilings(requests=500, writes=10, stall_seconds=0.25, peak_mebibytes=300),
        "idle": Ceilings(requests=360, writes=10, stall_seconds=0.25, peak_mebibytes=300),
        "scraped": Ceilings(requests=120, writes=10, stall_seconds=0.25, peak_mebibytes=300),
        "profile edited": Ceilings(requests=60, writes=10, stall_seconds=0.25, peak_mebibytes=300),
        "new champion": Ceilings(requests=26000, writes=25000, stall_seconds=0.25, peak_mebibytes=400),
    },
    _measure,
)
