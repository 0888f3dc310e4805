# SPDX-License-Identifier: Apache-2.0
"""The Lease survives a busy event loop, expires with a frozen one, and fences every write."""

import asyncio
import threading
from collections.abc import AsyncIterator
from copy import deepcopy
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Conflict, NotActive
from finetune_operator.engine.lease import Lease, LeaseThread, LeaseTimes
from finetune_operator.engine.resources import JOB, ResourceTypes
from finetune_operator.plan import Manifest
from tests.waiting import eventually

TIMES = LeaseTimes(duration_seconds=1500, deadline_seconds=1000, retry_seconds=0.01, stall_seconds=60)
"""Only the test's clock, which the tests advance, reaches the long times."""


class OneLease:
    """A fake API server with the requests of a Lease."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.version = 0
        self.renewed = threading.Semaphore(0)

    async def get(self, *_: Any) -> Manifest | None:
        return deepcopy(self.lease)

    async def create(self, manifest: Manifest) -> Manifest:
        return self._write(manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        if self.lease is None or manifest["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("changed")
        self.renewed.release()
        return self._write(manifest)

    async def close(self) -> None:
        pass

    def _write(self, manifest: Manifest) -> Manifest:
        self.version += 1
        self.lease = deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return deepcopy(self.lease)


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    def __init__(self) -> None:
        self.server: Any = OneLease()
        self.clock = Clock()
        self.lease = LeaseThread(
            lambda: self.server,
            lambda cluster, stalled_seconds: Lease(
                cluster,
                "ns",
                "active",
                identity="me",
                times=TIMES,
                clock=self.clock,
                stalled_seconds=stalled_seconds,
            ),
            self.clock,
        )


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.lease.close()


async def keeping(scene: Scene) -> asyncio.Task[None]:
    """The started task that renews the Lease."""
    await scene.lease.acquire()
    keep = asyncio.create_task(scene.lease.keep())
    await asyncio.to_thread(scene.server.renewed.acquire)
    return keep


def renewals(scene: Scene, number: int) -> None:
    """Block this event loop until the Lease has been renewed this many times."""
    for _ in range(number):
        assert scene.server.renewed.acquire(timeout=30), "the Lease is not renewed while the loop is busy"


async def test_the_lease_is_renewed_while_the_event_loop_is_busy(scene: Scene) -> None:
    keep = await keeping(scene)
    renewals(scene, 5)
    scene.lease.check()
    assert scene.lease.held
    keep.cancel()


async def test_a_loop_that_stands_still_for_too_long_does_not_keep_the_lease(scene: Scene) -> None:
    keep = await keeping(scene)
    scene.clock.now += TIMES.stall_seconds - 1
    renewals(scene, 3)
    assert scene.lease.held
    scene.clock.now += 2
    eventually("the Lease is given up", lambda: not scene.lease.held)
    with pytest.raises(NotActive):
        scene.lease.check()
    await asyncio.wait_for(keep, 30)


async def test_a_loop_that_turns_keeps_the_lease_for_any_time(scene: Scene) -> None:
    keep = await keeping(scene)
    for _ in range(3):
        scene.clock.now += TIMES.stall_seconds - 1
        await asyncio.sleep(0.6)  # longer than one heartbeat
    assert scene.lease.held
    keep.cancel()


async def test_after_a_freeze_no_write_passes_although_nothing_has_noticed_it_yet(scene: Scene) -> None:
    with pytest.raises(NotActive):
        scene.lease.check()
    await scene.lease.acquire()
    scene.clock.now += TIMES.deadline_seconds - 1
    scene.lease.check()
    scene.clock.now += 1
    assert scene.lease.held
    with pytest.raises(NotActive):
        scene.lease.check()


async def test_a_released_lease_lets_no_write_pass_and_is_free(scene: Scene) -> None:
    await scene.lease.acquire()
    await scene.lease.release()
    with pytest.raises(NotActive):
        scene.lease.check()
    assert scene.server.lease["spec"]["holderIdentity"] == ""


async def test_a_fenced_connection_reads_and_sends_no_write() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.json_response({"kind": "Job"})

    def closed() -> None:
        raise NotActive("not held")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        configuration = Configuration(host=str(server.make_url("/")).rstrip("/"))
        cluster = KubernetesClient(configuration, ResourceTypes(), "test", fence=closed)
        seen = {"name": "x", "namespace": "team", "uid": "u", "resourceVersion": "1"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": seen}
        for write in (
            cluster.create(job),
            cluster.replace(job),
            cluster.apply(job),
            cluster.apply_status(job),
            cluster.patch_metadata(job, {}),
            cluster.delete(job, "Background"),
        ):
            with pytest.raises(NotActive):
                await write
        await cluster.get(JOB, "team", "x")
        await cluster.close()
    assert asked == ["GET"]
