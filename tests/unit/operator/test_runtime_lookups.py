# SPDX-License-Identifier: Apache-2.0
"""Thousands of objects that wait for a claim cost one periodic request and no passes."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import ApiError, Rejected, Unavailable, is_refusal
from finetune_operator.engine.resources import (
    CLAIM,
    HTTP_ROUTE,
    LOCAL_QUEUE,
    PENDING_WORKLOADS,
    ResourceType,
    ResourceTypes,
)
from finetune_operator.plan import Key, Manifest
from finetune_operator.runtime.lookups import MAX_POLL_SECONDS, MIN_POLL_SECONDS, PAUSE_SECONDS, Lookups
from tests.unit.operator.skippingclock import clock, run

NAMES = [Key("FineTuneJob", "team", f"run-{number}") for number in range(1000)]


def claim(uid: str = "u", mode: str = "ReadWriteMany") -> Manifest:
    return {"metadata": {"name": "artifacts", "uid": uid}, "spec": {"accessModes": [mode]}}


class Server:
    """A fake API server for claims."""

    def __init__(self) -> None:
        self.claim: Manifest | None = None
        self.asked: list[float] = []
        self.is_down = False

    async def get(self, *_: Any) -> Manifest | None:
        self.asked.append(clock())
        if self.is_down:
            raise Unavailable("down")
        return self.claim


class Scene:
    def __init__(self) -> None:
        self.server = Server()
        self.lookups = Lookups(cast(Any, self.server), clock=clock)
        self.woken: list[Key] = []
        self.task = asyncio.create_task(self.lookups.keep_polling(self.woken.append))

    async def passes(self, *keys: Key) -> None:
        for key in keys:
            found = await self.lookups.get(CLAIM, key.namespace, "artifacts")
            self.lookups.note(key, {CLAIM: {"artifacts": found}})


def test_those_that_wait_for_a_claim_are_woken_when_it_is_there_and_not_before() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.passes(*NAMES)
        await asyncio.sleep(3600)
        assert scene.woken == []
        # Once when it was needed, then at growing intervals.
        assert len(scene.server.asked) < 40
        scene.server.claim = claim()
        await asyncio.sleep(MAX_POLL_SECONDS + MIN_POLL_SECONDS)
        assert sorted(scene.woken) == sorted(NAMES)
        await scene.passes(*NAMES)
        asked = len(scene.server.asked)
        await asyncio.sleep(3600)
        assert len(scene.server.asked) == asked, "nothing waits any more"
        scene.task.cancel()

    run(test())


def test_a_claim_that_is_made_soon_is_seen_soon() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.passes(NAMES[0])
        scene.server.claim = claim()
        await asyncio.sleep(MIN_POLL_SECONDS + 5)
        assert scene.woken == [NAMES[0]]
        assert await scene.lookups.get(CLAIM, "team", "artifacts") == scene.server.claim
        scene.task.cancel()

    run(test())


def test_a_claim_that_not_all_nodes_can_mount_is_waited_for_until_it_is_another_one() -> None:
    async def test() -> None:
        scene = Scene()
        scene.server.claim = claim(mode="ReadWriteOnce")
        await scene.passes(NAMES[0])
        await asyncio.sleep(600)
        assert scene.woken == []
        scene.server.claim = claim(uid="another")
        await asyncio.sleep(MAX_POLL_SECONDS)
        assert scene.woken == [NAMES[0]]
        scene.task.cancel()

    run(test())


def test_marks_of_claims_that_users_fill_are_not_kept() -> None:
    async def test() -> None:
        scene = Scene()
        scene.server.claim = claim()
        scene.server.claim["metadata"] |= {"annotations": {"note": "x" * 200_000}, "labels": {"a": "b"}}
        assert await scene.lookups.get(CLAIM, "team", "artifacts") == claim()

    run(test())


def test_no_answer_is_no_news() -> None:
    async def test() -> None:
        scene = Scene()
        scene.server.claim = claim(mode="ReadWriteOnce")
        await scene.passes(NAMES[0])
        scene.server.is_down = True
        await asyncio.sleep(600)
        scene.server.is_down = False
        await asyncio.sleep(600)
        assert scene.woken == []
        scene.task.cancel()

    run(test())


def test_what_needs_no_claim_any_more_waits_for_none() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.passes(NAMES[0], NAMES[1])
        scene.lookups.note(NAMES[0], {})
        scene.server.claim = claim()
        await asyncio.sleep(60)
        assert scene.woken == [NAMES[1]]
        scene.task.cancel()

    run(test())


class GatewayServer:
    """A fake API server that refuses HTTPRoutes, or has none, with or without their type."""

    def __init__(self, *, is_served: bool = True, error: ApiError | None = None) -> None:
        self._is_served = is_served
        self._error = error

    async def get(self, *_: Any) -> Manifest | None:
        if self._error is not None:
            raise self._error
        return None

    async def pages(self, *_: Any, **__: Any) -> AsyncGenerator[tuple[list[Manifest], str]]:
        if self._error is not None:
            raise self._error
        if not self._is_served:
            raise Rejected(404, "NotFound", "the server could not find the requested resource")
        yield [], "1"

    async def serves(self, type_: ResourceType) -> bool:
        assert type_ == HTTP_ROUTE
        return self._is_served


async def route(server: GatewayServer) -> Manifest | None:
    return await Lookups(cast(Any, server)).get(HTTP_ROUTE, "team", "desk")


async def test_a_type_that_is_not_installed_is_told_from_an_object_that_does_not_exist() -> None:
    assert await route(GatewayServer()) is None
    found = await route(GatewayServer(is_served=False))
    assert found is not None
    assert is_refusal(found)
    assert found["code"] == 404


async def test_a_missing_right_to_an_optional_type_is_an_answer_and_an_outage_is_an_error() -> None:
    found = await route(GatewayServer(error=Rejected(403, "Forbidden", "cannot get httproutes")))
    assert found is not None
    assert (found["code"], found["message"]) == (403, "cannot get httproutes")
    with pytest.raises(Unavailable):
        await route(GatewayServer(error=Unavailable("down")))


async def test_a_type_that_is_not_installed_is_an_answer_to_who_has_no_right_to_it_too() -> None:
    server = GatewayServer(is_served=False, error=Rejected(403, "Forbidden", "cannot get httproutes"))
    found = await route(server)
    assert found is not None
    assert found["code"] == 404


class KueueServer:
    """A fake API server on which Kueue may be installed, without LocalQueues."""

    def __init__(self, *, is_readable: bool) -> None:
        self.is_installed = False
        self._is_readable = is_readable

    async def get(self, *_: Any) -> Manifest | None:
        if self._is_readable:
            return None
        raise Rejected(403, "Forbidden", "cannot get localqueues")

    async def serves(self, _: ResourceType) -> bool:
        return self.is_installed

    async def serves_group(self, _: ResourceType) -> bool:
        return self.is_installed


@pytest.mark.parametrize(("groups", "code"), [(["kueue.x-k8s.io"], 501), ([], 404)])
async def test_a_kueue_with_another_version_of_its_api_is_installed(groups: list[str], code: int) -> None:
    async def discover(_: web.Request) -> web.Response:
        return web.json_response({"kind": "APIGroup"})

    app = web.Application()
    for group in groups:
        app.router.add_get(f"/apis/{group}", discover)
    async with TestServer(app) as server:
        client = KubernetesClient(Configuration(host=str(server.make_url(""))), ResourceTypes(), "test")
        found = await Lookups(client).get(LOCAL_QUEUE, "team", "gpus")
        await client.close()
    assert found is not None
    assert found["code"] == code


@pytest.mark.parametrize("is_readable", [True, False])
def test_what_waits_for_kueue_is_woken_by_its_installation(is_readable: bool) -> None:
    """With the right to read queues, its queue is still missing then, which is another message."""

    async def test() -> None:
        server = KueueServer(is_readable=is_readable)
        lookups, woken = Lookups(cast(Any, server), clock=clock), list[Key]()
        task = asyncio.create_task(lookups.keep_polling(woken.append))
        found = await lookups.get(LOCAL_QUEUE, "team", "gpus")
        lookups.note(NAMES[0], {LOCAL_QUEUE: {"gpus": found}})
        await asyncio.sleep(600)
        assert woken == []
        server.is_installed = True
        await asyncio.sleep(MAX_POLL_SECONDS + MIN_POLL_SECONDS)
        assert woken == [NAMES[0]]
        task.cancel()

    run(test())


class VisibilityServer:
    """Kueue's visibility API with one Workload in each queue, or an error."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error = error
        self.asked: list[str] = []
        self._seconds = seconds

    async def get(self, _: ResourceType, namespace: str, name: str, subresource: str) -> Manifest:
        self.asked.append(f"{namespace}/{name}/{subresource}")
        await asyncio.sleep(self._seconds)
        if self.error is not None:
            raise self.error
        owner = {"uid": "uid-1"}
        metadata = {"namespace": namespace, "ownerReferences": [owner]}
        item = {"metadata": metadata, "positionInLocalQueue": 0, "positionInClusterQueue": 4}
        return {"kind": "PendingWorkloadsSummary", "metadata": {}, "items": [item]}


async def positions(lookups: Lookups, queue: str = "gpus") -> Manifest | None:
    found = await lookups.get(PENDING_WORKLOADS, "team", queue)
    return None if found is None else found["positions"]


def test_all_that_wait_in_a_queue_share_one_request_for_their_positions() -> None:
    async def test() -> None:
        server = VisibilityServer(seconds=1)
        lookups = Lookups(cast(Any, server), clock=clock)
        found = await asyncio.gather(*(positions(lookups) for _ in range(500)))
        assert found == [{"uid-1": (1, 5)}] * 500
        await asyncio.sleep(25)
        await positions(lookups)
        assert server.asked == ["team/gpus/pendingworkloads"]
        await asyncio.sleep(10)
        await positions(lookups)
        assert len(server.asked) == 2

    run(test())


@pytest.mark.parametrize(
    "error", [Rejected(403, "Forbidden", "cannot get"), Rejected(404, "NotFound", "no queue")]
)
async def test_a_position_that_cannot_be_read_is_unknown(error: ApiError) -> None:
    assert await positions(Lookups(cast(Any, VisibilityServer(error)))) is None


@pytest.mark.parametrize(
    "items", [[{}], ["text"], 1, [{"metadata": {"namespace": "team"}, "positionInClusterQueue": "first"}]]
)
async def test_a_response_of_another_form_has_no_positions(items: Any) -> None:
    class Other(VisibilityServer):
        async def get(self, *target: Any) -> Manifest:
            return {**await super().get(*target), "items": items}

    assert await positions(Lookups(cast(Any, Other()))) is None


@pytest.mark.parametrize(("error", "seconds"), [(Unavailable("down"), 0), (None, 3600)])
def test_a_visibility_api_that_does_not_answer_is_left_alone_for_a_minute(
    error: ApiError | None, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        server = VisibilityServer(error, seconds)
        lookups = Lookups(cast(Any, server), clock=clock)
        assert await positions(lookups) is None
        assert await positions(lookups, "another") is None
        assert len(server.asked) == 1
        assert clock() < 5
        await asyncio.sleep(PAUSE_SECONDS + 1)
        await positions(lookups)
        assert len(server.asked) == 2

    run(test())
    assert not caplog.records
