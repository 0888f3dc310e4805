# SPDX-License-Identifier: Apache-2.0
"""A fake kubelet for thousands of Jobs on a control plane without nodes; it follows a watch."""

import asyncio
from typing import Final

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Conflict, Unavailable
from finetune_operator.engine.resources import POD
from finetune_operator.plan import Manifest
from finetune_trainer.contract.configs import StageConfig
from tools.fakepods import config_of, ended, running, succeeded

MAX_CONCURRENT_REQUESTS: Final = 8
"""Maximum number of requests in flight."""
STAGE_SECONDS: Final = 1.0
"""Duration of a stage: long enough for the operator to report that the pod runs."""
WATCH_SECONDS: Final = 600


class BenchKubelet:
    """Starts each pod of a namespace at once, and ends it after STAGE_SECONDS with a result of its stage."""

    def __init__(self, cluster: KubernetesClient, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._pods: asyncio.Queue[Manifest] = asyncio.Queue()
        self._seen: set[str] = set()

    async def run(self) -> None:
        """Serve pods until cancelled.

        Raises:
            ExceptionGroup: the API server refused a request.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            for _ in range(MAX_CONCURRENT_REQUESTS):
                tasks.create_task(self._work())

    async def _watch(self) -> None:
        while True:
            try:
                # A watch without a resourceVersion begins with the existing objects.
                async for event in self._cluster.watch(POD, self._namespace, "", "", seconds=WATCH_SECONDS):
                    if event["type"] == "ADDED":
                        self._enqueue(event["object"])
            except Unavailable:
                continue

    def _enqueue(self, pod: Manifest) -> None:
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
        """The pod with its new status, or None if the pod no longer exists."""
        identity = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": identity, "status": status}
        try:
            return await self._cluster.apply_status(manifest)
        except Conflict:
            return None
