"""Runs the pods of thousands of Jobs where there is no node: driven by a watch, many at a time."""

import asyncio
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Conflict, Unavailable
from finetune_operator.engine.resources import POD
from finetune_operator.plan import Manifest
from finetune_trainer.contract.configs.stage import StageConfig
from tools.fakepods import config_of, ended, running, succeeded

MAX_CONCURRENT_REQUESTS: Final = 8
"""Requests under way."""
STAGE_SECONDS: Final = 1.0
"""Long enough that the operator sees a pod run and reports it before the pod ends."""
WATCH_SECONDS: Final = 600


class BenchKubelet:
    """Starts each pod of a namespace at once, and ends it a second later with a fitting result."""

    def __init__(self, cluster: KubernetesClient, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._pods: asyncio.Queue[Manifest] = asyncio.Queue()
        self._seen: set[str] = set()

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            ExceptionGroup: the API server refused what a kubelet does.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            for _ in range(MAX_CONCURRENT_REQUESTS):
                tasks.create_task(self._work())

    async def _watch(self) -> None:
        while True:
            try:
                # From no version on, a watch begins with what is there.
                async for event in self._cluster.watch(POD, self._namespace, "", "", seconds=WATCH_SECONDS):
                    if event["type"] == "ADDED":
                        self._see(event["object"])
            except Unavailable:
                continue

    def _see(self, pod: Manifest) -> None:
        uid = pod["metadata"]["uid"]
        if pod["status"]["phase"] == "Pending" and uid not in self._seen:
            self._seen.add(uid)
            self._pods.put_nowait(pod)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pod = await self._pods.get()
            if pod["status"]["phase"] == "Pending":
                started = await self._write(pod, running(pod))
                if started is not None:
                    loop.call_later(STAGE_SECONDS, self._pods.put_nowait, started)
            else:
                config = config_of(pod)
                if isinstance(config, StageConfig):
                    await self._write(pod, ended(pod, succeeded(config)))

    async def _write(self, pod: Manifest, status: Manifest) -> Manifest | None:
        """The pod with its new status, or None where it is gone."""
        identity = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": identity, "status": status}
        try:
            return await self._cluster.apply_status(manifest)
        except Conflict:
            return None
