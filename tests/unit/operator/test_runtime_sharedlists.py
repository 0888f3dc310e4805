# SPDX-License-Identifier: Apache-2.0
"""What all waiting objects of a namespace need is read in one list per interval, however many they are."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Rejected, Unavailable
from finetune_operator.engine.resources import (
    EVENT,
    HTTP_ROUTE,
    WORKLOAD,
    ResourceType,
    ResourceTypes,
)
from finetune_operator.plan import Manifest
from finetune_operator.runtime.lookups import MAX_LISTED, Lookups
from tests.unit.operator.skippingclock import clock, run

NUMBER = 1000


def event(uid: str, message: str = "exceeded quota", **metadata: str) -> Manifest:
    about = {"kind": "Job", "uid": uid}
    return {
        "kind": "Event",
        "metadata": {"name": f"{uid}.1", **metadata},
        "involvedObject": about,
        "message": message,
        "lastTimestamp": "2030-01-02T03:00:00Z",
        "source": {"component": "job-controller"},
    }


def workload(uid: str, **status: Any) -> Manifest:
    metadata = {"name": f"job-{uid}", "labels": {"kueue.x-k8s.io/job-uid": uid}}
    return {"kind": "Workload", "metadata": metadata, "spec": {"podSets": ["large"]}, "status": status}


def route(name: str, *, is_accepted: bool = True, generation: int = 1) -> Manifest:
    gateway = {"name": "shared"}
    accepted = {
        "type": "Accepted",
        "status": "True" if is_accepted else "False",
        "observedGeneration": generation,
    }
    parents = [{"parentRef": gateway, "controllerName": "example.com/gateway", "conditions": [accepted]}]
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "team", "generation": generation},
        "spec": {"parentRefs": [gateway]},
        "status": {"parents": parents},
    }


class Server:
    """An API server with objects of one type in each namespace. It counts the requests."""

    def __init__(self, *objects: Manifest, page_seconds: float = 0.0) -> None:
        self.objects = list(objects)
        self.error: Exception | None = None
        self.lists: list[str] = []
        self.gets: list[str] = []
        self.selectors: set[tuple[str, str]] = set()
        self._page_seconds = page_seconds

    async def pages(
        self, _: ResourceType, namespace: str, selector: str, fields: str, **__: Any
    ) -> AsyncGenerator[tuple[list[Manifest], str]]:
        self.lists.append(namespace)
        self.selectors.add((selector, fields))
        await asyncio.sleep(self._page_seconds)
        if self.error is not None:
            raise self.error
        for start in range(0, max(1, len(self.objects)), 100):
            yield self.objects[start : start + 100], "1"

    async def get(self, _: ResourceType, __: str, name: str, ___: str) -> Manifest | None:
        self.gets.append(name)
        return next((each for each in self.objects if each["metadata"]["name"] == name), None)

    async def serves(self, _: ResourceType) -> bool:
        return True


def lookups_of(server: Server) -> Lookups:
    return Lookups(cast(Any, server), clock=clock)


async def read(lookups: Lookups, type_: ResourceType, namespace: str = "team") -> list[Manifest | None]:
    """What the passes over NUMBER objects of a namespace find at the same time."""
    return await asyncio.gather(*(lookups.get(type_, namespace, f"uid-{n}") for n in range(NUMBER)))


@pytest.mark.parametrize(
    ("type_", "server", "selectors"),
    [
        (
            EVENT,
            Server(*(event(f"uid-{n}") for n in range(NUMBER))),
            ("", "involvedObject.kind=Job,reason=FailedCreate"),
        ),
        (WORKLOAD, Server(*(workload(f"uid-{n}") for n in range(NUMBER))), ("kueue.x-k8s.io/job-uid", "")),
    ],
)
def test_a_thousand_waiting_jobs_of_a_namespace_share_one_list_per_interval(
    type_: ResourceType, server: Server, selectors: tuple[str, str]
) -> None:
    async def test() -> None:
        lookups = lookups_of(server)
        for _ in range(6):
            found = await read(lookups, type_)
            assert all(each is not None and each["kind"] == type_.kind for each in found)
            await asyncio.sleep(10)
        assert server.lists == ["team"] * 2
        await read(lookups, type_, "another-team")
        assert server.lists == ["team"] * 2 + ["another-team"]
        await asyncio.sleep(3600)
        assert len(server.lists) == 3, "nothing is read where no Job waits"
        assert server.selectors == {selectors}
        assert server.gets == []

    run(test())


def test_the_last_event_of_a_job_is_found_and_only_what_messages_need_is_kept() -> None:
    async def test() -> None:
        server = Server(event("uid-1", "first"), event("uid-1", "x" * 1_000_000), event("uid-2"))
        found = await lookups_of(server).get(EVENT, "team", "uid-1")
        assert found is not None
        assert found.keys() == {"kind", "message", "lastTimestamp"}
        assert found["message"] == "x" * 1024

    run(test())


def test_a_workload_is_kept_without_its_pods() -> None:
    async def test() -> None:
        conditions = [{"type": "QuotaReserved", "status": "False"}]
        server = Server(workload("uid-1", conditions=conditions, resourceRequests=["large"]))
        lookups = lookups_of(server)
        assert await lookups.get(WORKLOAD, "team", "uid-1") == {
            "kind": "Workload",
            "metadata": {"name": "job-uid-1"},
            "status": {"conditions": conditions},
        }
        assert await lookups.get(WORKLOAD, "team", "uid-2") is None

    run(test())


@pytest.mark.parametrize(
    "error", [Unavailable("down"), Rejected(403, "Forbidden", "cannot list"), KeyError("items")]
)
def test_events_that_cannot_be_read_in_one_namespace_are_read_in_the_others(error: Exception) -> None:
    async def test() -> None:
        server = Server(event("uid-1"))
        server.error = error
        lookups = lookups_of(server)
        assert await lookups.get(EVENT, "hostile", "uid-1") is None
        server.error = None
        assert await lookups.get(EVENT, "hostile", "uid-1") is None, "it is left alone for an interval"
        assert await lookups.get(EVENT, "team", "uid-1") is not None
        await asyncio.sleep(31)
        assert await lookups.get(EVENT, "hostile", "uid-1") is not None

    run(test())


def test_a_slow_list_of_events_holds_passes_for_half_a_second_and_is_used_when_it_is_there() -> None:
    async def test() -> None:
        server = Server(event("uid-1"), page_seconds=10)
        lookups = lookups_of(server)
        assert await read(lookups, EVENT) == [None] * NUMBER
        assert await read(lookups, EVENT) == [None] * NUMBER
        assert clock() == pytest.approx(0.5)
        await asyncio.sleep(10)
        assert await lookups.get(EVENT, "team", "uid-1") is not None
        assert server.lists == ["team"]

    run(test())


def test_while_a_slow_list_of_workloads_is_read_again_passes_use_the_one_before() -> None:
    async def test() -> None:
        server = Server(workload("uid-1"), page_seconds=10)
        lookups = lookups_of(server)
        assert await lookups.get(WORKLOAD, "team", "uid-1") is not None, (
            "a Workload is never just not read yet"
        )
        began = clock()
        assert began == pytest.approx(10)
        server.objects.append(workload("uid-2"))
        await asyncio.sleep(21)
        assert (await read(lookups, WORKLOAD))[1] is not None
        assert clock() - began - 21 == pytest.approx(0.5)
        assert await lookups.get(WORKLOAD, "team", "uid-2") is None
        await asyncio.sleep(10)
        assert await lookups.get(WORKLOAD, "team", "uid-2") is not None
        await asyncio.sleep(3600)
        server.objects.clear()
        assert await lookups.get(WORKLOAD, "team", "uid-2") is None, "an old list is of no use"

    run(test())


def test_of_a_namespace_with_too_many_workloads_a_missing_one_is_not_said_to_be_missing() -> None:
    async def test() -> None:
        number = MAX_LISTED + 500
        server = Server(*(workload(f"uid-{n}") for n in range(number)))
        lookups = lookups_of(server)
        assert await lookups.get(WORKLOAD, "team", "uid-0") is not None
        found = await lookups.get(WORKLOAD, "team", f"uid-{number - 1}")
        assert found is not None
        assert (found["code"], found["message"]) == (413, "namespace team has more than 10000 workloads")

    run(test())


def test_accepted_routes_of_a_namespace_share_one_list() -> None:
    async def test() -> None:
        server = Server(*(route(f"desk-{n}") for n in range(100)))
        lookups = lookups_of(server)
        for _ in range(3):
            for n in range(100):
                found = await lookups.get(HTTP_ROUTE, "team", f"desk-{n}")
                assert found is not None
                assert found["metadata"]["name"] == f"desk-{n}"
            await asyncio.sleep(5)
        assert server.lists == ["team"]
        assert server.gets == []

    run(test())


def test_a_route_that_is_missing_not_accepted_or_just_written_is_read_in_each_pass() -> None:
    async def test() -> None:
        server = Server(route("desk"), route("refused", is_accepted=False))
        lookups = lookups_of(server)
        for name in ("desk", "refused", "refused", "missing"):
            await lookups.get(HTTP_ROUTE, "team", name)
        assert server.gets == ["refused", "refused", "missing"]

        lookups.written([route("desk"), {"kind": "Service", "metadata": {"name": "desk"}}])
        server.objects[0] = route("desk", generation=2)
        found = await lookups.get(HTTP_ROUTE, "team", "desk")
        assert found is not None
        assert found["metadata"]["generation"] == 2
        assert server.gets[3:] == ["desk"]
        await asyncio.sleep(16)
        await lookups.get(HTTP_ROUTE, "team", "desk")
        assert server.gets[4:] == [], "a later list has what was written"

    run(test())


def test_objects_too_large_for_a_list_are_refused_without_reading_them() -> None:
    async def test() -> None:
        async def objects(_: web.Request) -> web.Response:
            padding = {"annotations": {"padding": "x" * (17 << 20)}}
            item = {**workload("uid-1"), "metadata": padding}
            return web.Response(
                body=json.dumps({"items": [item], "metadata": {"resourceVersion": "1"}}),
                content_type="application/json",
            )

        async def served(_: web.Request) -> web.Response:
            return web.json_response({"resources": [{"name": "workloads"}]})

        app = web.Application()
        group = "/apis/kueue.x-k8s.io/v1beta2"
        app.router.add_get(group, served)
        app.router.add_get(f"{group}/namespaces/team/workloads", objects)
        async with TestServer(app) as server:
            client = KubernetesClient(Configuration(host=str(server.make_url(""))), ResourceTypes(), "test")
            found = await Lookups(client).get(WORKLOAD, "team", "uid-1")
            await client.close()
        assert found is not None
        assert found["code"] == 413
        assert found["message"] == "the workloads of namespace team are too large: a page has over 16 MiB"

    asyncio.run(test())
