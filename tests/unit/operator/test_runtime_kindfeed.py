# SPDX-License-Identifier: Apache-2.0
"""The caches of the kinds stay current if Kopf's watches end or have gaps, or if etcd is restored."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from functools import partial
from typing import Any, Self, cast

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.watches import Watches
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import KIND_TYPES, Caches
from finetune_operator.runtime.kind_watch import KindFeed, KopfWatch, Sink
from tools.cluster.layout import free_port


def dataset(name: str, version: int = 1) -> Manifest:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "Dataset", "metadata": metadata}


class Server:
    """A fake cluster with some Datasets."""

    def __init__(self, *names: str) -> None:
        self.datasets = [dataset(name) for name in names]
        self.lists = 0

    async def pages(self, type_: Any, *_: Any) -> AsyncGenerator[tuple[list[Manifest], str]]:
        self.lists += type_.kind == "Dataset"
        yield self.datasets if type_.kind == "Dataset" else [], "10"


class FakeWatch:
    """A fake watch that the test controls."""

    def __init__(
        self,
        sink: Sink,
        listed: Callable[[str], None],
        ended: Callable[[], None],
        lists: Collection[str] = (),
    ) -> None:
        self.sink, self.listed, self.ended = sink, listed, ended
        self.lists = lists
        self.is_stopped = False

    def start(self) -> None:
        for kind in self.lists:
            self.listed(kind)

    def stop(self) -> None:
        self.is_stopped = True


class Fed:
    """A feed after its first sweeps."""

    def __init__(self, *names: str) -> None:
        self.server = Server(*names)
        self.caches, self.watches = Caches(), Watches()
        self.made: list[FakeWatch] = []
        self.lists: list[Collection[str]] = []
        """Objects that the next watches list at their start."""
        self.feed = KindFeed(cast("KubernetesClient", self.server), self.caches, self.watches, (), self._make)
        self.tasks = [asyncio.create_task(sweeper.run()) for sweeper in self.feed]

    def _make(self, sink: Sink, listed: Callable[[str], None], ended: Callable[[], None]) -> FakeWatch:
        lists = self.lists.pop(0) if self.lists else ()
        self.made.append(FakeWatch(sink, listed, ended, lists))
        return self.made[-1]

    @property
    def names(self) -> set[str]:
        return set(self.caches.kinds["Dataset"].names("team"))


@pytest.fixture
async def fed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fed]:
    monkeypatch.setattr("finetune_operator.runtime.kind_watch.QUIET_SECONDS", 0.05)
    monkeypatch.setattr("finetune_operator.runtime.kind_watch.FIRST_RESTART_SECONDS", 0.01)
    made = Fed("a", "b")
    await asyncio.wait_for(made.watches.all_settled(), 10)
    made.feed.start()
    yield made
    await made.feed.stop()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - many things are waited for, not one event
            await asyncio.sleep(0.005)


async def test_a_watch_that_ended_is_started_again(fed: Fed) -> None:
    fed.made[0].ended()
    fed.made[0].ended()
    await until(lambda: len(fed.made) == 2)
    fed.made[1].sink("ADDED", dataset("c", 11))
    await until(lambda: fed.names == {"a", "b", "c"})
    assert [watch.is_stopped for watch in fed.made] == [True, False]


async def test_a_watch_that_does_not_list_every_kind_is_started_again(
    fed: Fed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kopf discovers resources once, and only warns if an API server does not have the kinds yet."""
    monkeypatch.setattr("finetune_operator.runtime.kind_watch.FIRST_LIST_SECONDS", 0.05)
    monkeypatch.setattr(fed.feed, "_list_seconds", 0.05)
    fed.lists = [KIND_TYPES.keys() - {"Dataset"}, KIND_TYPES.keys()]
    fed.feed.restart_after_restore()
    await until(lambda: len(fed.made) == 3 and fed.feed._list_seconds == 0.05)
    assert [watch.is_stopped for watch in fed.made] == [True, True, False]
    assert "Kopf has not listed Dataset in 0 s" in caplog.text


async def test_after_a_restore_all_is_listed_and_watched_anew(fed: Fed) -> None:
    fed.server.datasets = [dataset("a")]
    fed.caches.kinds["Dataset"].begin_epoch()
    fed.feed.restart_after_restore()
    await until(lambda: len(fed.made) == 2 and fed.names == {"a"})


async def test_what_was_deleted_while_kopf_did_not_watch_is_found_by_a_sweep(fed: Fed) -> None:
    fed.server.datasets = [dataset("a")]
    fed.made[0].sink("LISTED", dataset("a"))
    await until(lambda: fed.names == {"a"})


async def test_when_kopf_lists_none_what_is_held_is_looked_for(fed: Fed) -> None:
    fed.server.datasets = []
    fed.made[0].listed("Dataset")
    await until(lambda: fed.names == set())


async def test_a_list_that_names_all_that_is_held_causes_no_sweep(fed: Fed) -> None:
    for name in ("a", "b"):
        fed.made[0].sink("LISTED", dataset(name))
    await until(lambda: not fed.feed._quiet)
    await asyncio.sleep(0)
    assert fed.server.lists == 1


async def test_what_is_listed_and_known_is_not_kept_for_the_event_loop(
    fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a second copy of all objects would be in memory while the loop is busy, as at a start."""
    taken: list[str] = []
    monkeypatch.setattr(fed.feed, "_take", lambda _event, obj: taken.append(obj["metadata"]["name"]))
    fed.made[0].sink("LISTED", dataset("a"))
    fed.made[0].sink("LISTED", dataset("b", 11))
    await until(lambda: taken == ["b"])


def resource(plural: str, kind: str) -> Manifest:
    verbs = ["list", "watch", "patch"]
    return {"name": plural, "singularName": "", "kind": kind, "namespaced": True, "verbs": verbs}


class ApiServer:
    """A fake API server without objects, whose watches always respond the same."""

    def __init__(self, *events: Manifest) -> None:
        self.events = events
        self.watches = 0
        self.port = free_port()
        self.configuration = Configuration(host=f"http://127.0.0.1:{self.port}")

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            self.watches += 1
            return web.Response(text="".join(json.dumps(event) + "\n" for event in self.events))
        group = {"groupVersion": "finetune.dev/v1alpha1", "version": "v1alpha1"}
        answers: dict[str, Any] = {
            "/api": {"versions": ["v1"]},
            "/api/v1": {"resources": [resource("namespaces", "Namespace")]},
            "/apis": {"groups": [{"name": "finetune.dev", "versions": [group], "preferredVersion": group}]},
            "/apis/finetune.dev/v1alpha1": {"resources": [resource("datasets", "Dataset")]},
        }
        listed = {"kind": "DatasetList", "metadata": {"resourceVersion": "1"}, "items": []}
        return web.json_response(answers.get(request.path, listed))

    def watch(self, sink: Sink, listed: Callable[[str], None], ended: Callable[[], None]) -> KopfWatch:
        return KopfWatch(self.configuration, (), sink, listed, ended)


def fed_by(server: ApiServer, caches: Caches) -> KindFeed:
    return KindFeed(cast("KubernetesClient", Server()), caches, Watches(), (), server.watch)


async def test_an_error_in_a_watch_ends_kopf_and_not_the_process() -> None:
    error = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd says no"}
    async with ApiServer({"type": "ERROR", "object": error}) as server:
        fed = fed_by(server, Caches())
        fed.start()
        try:
            await until(lambda: server.watches >= 2)
        finally:
            await fed.stop()


async def test_a_list_of_kopf_without_objects_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All objects were deleted in a gap: Kopf reports nothing, and the caches would keep them."""
    monkeypatch.setattr("finetune_operator.runtime.kind_watch.QUIET_SECONDS", 0.05)
    async with ApiServer() as server:
        caches = Caches()
        caches.kinds["Dataset"].put(dataset("a"))
        fed = fed_by(server, caches)
        asked: list[str] = []
        for sweeper in fed:
            monkeypatch.setattr(sweeper, "request", partial(asked.append, sweeper.name))
        fed.start()
        try:
            await until(lambda: asked == ["datasets"])
        finally:
            await fed.stop()
