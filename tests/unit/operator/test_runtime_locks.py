# SPDX-License-Identifier: Apache-2.0
"""Parallel passes with a slow API server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.executor import EventRecorder, Executor, Stamp
from finetune_operator.engine.queue import ReconcileWorkers, WorkQueue
from finetune_operator.engine.resources import ResourceTypes
from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts
from finetune_operator.report.progress_cache import ProgressCache
from finetune_operator.runtime.caches import KIND_TYPES, Caches
from finetune_operator.runtime.controller import Controller
from finetune_operator.runtime.lookups import Lookups
from finetune_operator.runtime.snapshots import SnapshotReader
from tests.unit.operator.endpoints import checkpoint

CHECKPOINTS = "/apis/finetune.dev/v1alpha1/namespaces/team/checkpoints"


class SlowApiServer:
    """A fake API server for writes of a status. It holds back its first response until released."""

    def __init__(self, checkpoints: dict[str, Manifest]) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self._checkpoints = checkpoints
        self._version = 100

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_patch(f"{CHECKPOINTS}/{{name}}/status", self._status)
        app.router.add_post("/api/v1/namespaces/team/events", self._event)
        return app

    async def _status(self, request: web.Request) -> web.Response:
        status = json.loads(await request.text())["status"]
        self.asked.set()
        await self.answers.wait()
        old = self._checkpoints[request.match_info["name"]]
        self._version += 1
        metadata = {**old["metadata"], "resourceVersion": str(self._version)}
        return web.json_response({**old, "metadata": metadata, "status": status})

    async def _event(self, request: web.Request) -> web.Response:
        return web.json_response(json.loads(await request.text()), status=201)


class Scene:
    """A controller with that API server."""

    def __init__(self, url: str, caches: Caches) -> None:
        self.caches = caches
        self.cluster = KubernetesClient(Configuration(host=url), ResourceTypes(KIND_TYPES.values()), "test")
        events = EventRecorder(self.cluster, "test", "0")
        reader = SnapshotReader(caches)
        self.controller = Controller(
            caches=caches,
            reader=reader,
            executor=Executor(
                self.cluster,
                caches.by_type,
                events,
                Stamp("example.com/applied"),
                confirm_absent_before_create=lambda _: False,
            ),
            events=events,
            lookups=Lookups(self.cluster),
            board=ProgressCache(lambda _key, _seconds: None),
            metrics=OperatorMetrics(),
            facts=lambda: OperatorFacts(
                namespace="finetune-system", trainer_image="trainer:1", nonce_key="0f"
            ),
        )

        self.queue: WorkQueue[Key] = WorkQueue(lock=reader.lock)
        self.passed: asyncio.Queue[str] = asyncio.Queue()
        workers = ReconcileWorkers(self.queue, self.controller.reconcile, 2, self._passed)
        self.work = asyncio.create_task(workers.run())

    def _passed(self, key: Key, _seconds: float, _result: str) -> None:
        self.passed.put_nowait(key.name)

    def promoted(self) -> dict[str, str]:
        """Reason of each Checkpoint's Promoted condition."""
        found = (Checkpoint.model_validate(each) for each in self.caches.kinds["Checkpoint"])
        return {each.name: condition.reason for each in found for condition in each.status.conditions}


def approved(name: str, character: str, created: str, model: str = "tickets") -> Manifest:
    made: Any = checkpoint(name, character, promoted=None, modelLine=model, approval={"state": "Approved"})
    manifest: Manifest = made.to_dict()
    manifest["metadata"] |= {
        "uid": f"uid-of-{name}",
        "resourceVersion": character,
        "creationTimestamp": created,
    }
    return manifest


@pytest.fixture
async def server() -> AsyncIterator[tuple[SlowApiServer, Scene]]:
    caches = Caches()
    made = {
        "newer": approved("newer", "2", "2030-01-01T00:00:02Z"),
        "older": approved("older", "1", "2030-01-01T00:00:01Z"),
        "stranger": approved("stranger", "3", "2030-01-01T00:00:01Z", model="another-line"),
    }
    slow = SlowApiServer(made)
    async with TestServer(slow.app()) as listening:
        scene = Scene(str(listening.make_url("/")).rstrip("/"), caches)
        for manifest in made.values():
            caches.kinds["Checkpoint"].put(manifest)
        yield slow, scene
        slow.answers.set()
        scene.queue.close()
        await scene.work
        await scene.cluster.close()


def key(name: str) -> Key:
    return Key("Checkpoint", "team", name)


async def test_of_two_checkpoints_of_a_line_that_are_looked_at_together_the_second_sees_the_first_promoted(
    server: tuple[SlowApiServer, Scene],
) -> None:
    slow, scene = server
    scene.queue.add(key("newer"))
    await slow.asked.wait()
    scene.queue.add(key("older"))
    for _ in range(100):
        await asyncio.sleep(0)  # the second pass runs until it waits
    slow.answers.set()
    async with asyncio.timeout(30):
        assert {await scene.passed.get(), await scene.passed.get()} == {"newer", "older"}
    # Approval of a Checkpoint older than the champion does not promote it.
    assert scene.promoted() == {"newer": "Promoted", "older": "NotPromoted"}


async def test_other_lines_do_not_wait_even_when_one_line_has_more_keys_than_there_are_workers(
    server: tuple[SlowApiServer, Scene],
) -> None:
    slow, scene = server
    for name in ("newer", "older"):
        scene.queue.add(key(name))
    await slow.asked.wait()
    slow.asked.clear()
    scene.queue.add(key("stranger"))
    await asyncio.wait_for(slow.asked.wait(), 30)
    assert scene.passed.empty()
