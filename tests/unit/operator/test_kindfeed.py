"""What keeps the caches of our kinds true although Kopf's watches end, have gaps, or are of another etcd."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, cast

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from finetune_operator.caches import Caches
from finetune_operator.engine.cluster import Cluster
from finetune_operator.engine.watches import Watches
from finetune_operator.handlers import KopfWatch
from finetune_operator.kindfeed import KindFeed, Sink
from finetune_operator.plan import Manifest
from hack.cluster.ports import free_port


def dataset(name: str, version: int = 1) -> Manifest:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "Dataset", "metadata": metadata}


class Server:
    """A cluster with some Datasets."""

    def __init__(self, *names: str) -> None:
        self.datasets = [dataset(name) for name in names]
        self.lists = 0

    async def pages(self, type_: Any, *_: Any) -> AsyncGenerator[tuple[list[Manifest], str]]:
        self.lists += type_.kind == "Dataset"
        yield self.datasets if type_.kind == "Dataset" else [], "10"


class FakeWatch:
    """A watch that does what the test says."""

    def __init__(self, sink: Sink, ended: Callable[[], None]) -> None:
        self.sink, self.ended = sink, ended
        self.is_stopped = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.is_stopped = True


class Fed:
    """A feed whose first sweeps are through."""

    def __init__(self, *names: str) -> None:
        self.server = Server(*names)
        self.caches, self.watches = Caches(), Watches()
        self.made: list[FakeWatch] = []
        self.feed = KindFeed(cast("Cluster", self.server), self.caches, self.watches, (), self._make)
        self.tasks = [asyncio.create_task(sweeper.run()) for sweeper in self.feed]

    def _make(self, sink: Sink, ended: Callable[[], None]) -> FakeWatch:
        self.made.append(FakeWatch(sink, ended))
        return self.made[-1]

    @property
    def names(self) -> set[str]:
        return set(self.caches.kinds["Dataset"].names("team"))


@pytest.fixture
async def fed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fed]:
    monkeypatch.setattr("finetune_operator.kindfeed.QUIET_SECONDS", 0.05)
    monkeypatch.setattr("finetune_operator.kindfeed.FIRST_RESTART", 0.01)
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


async def test_after_a_restore_all_is_listed_and_watched_anew(fed: Fed) -> None:
    fed.server.datasets = [dataset("a")]
    fed.caches.kinds["Dataset"].begin_epoch()
    fed.feed.restored()
    await until(lambda: len(fed.made) == 2 and fed.names == {"a"})


async def test_what_was_deleted_while_kopf_did_not_watch_is_found_by_a_sweep(fed: Fed) -> None:
    fed.server.datasets = [dataset("a")]
    fed.made[0].sink("LISTED", dataset("a"))
    await until(lambda: fed.names == {"a"})


async def test_a_list_that_names_all_that_is_held_causes_no_sweep(fed: Fed) -> None:
    for name in ("a", "b"):
        fed.made[0].sink("LISTED", dataset(name))
    await until(lambda: not fed.feed._quiet)
    await asyncio.sleep(0)
    assert fed.server.lists == 1


async def test_what_is_listed_and_known_is_not_kept_for_the_event_loop(
    fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop is busy, as at a start, a second copy of all objects would wait for it."""
    taken: list[str] = []
    monkeypatch.setattr(fed.feed, "_take", lambda _event, obj: taken.append(obj["metadata"]["name"]))
    fed.made[0].sink("LISTED", dataset("a"))
    fed.made[0].sink("LISTED", dataset("b", 11))
    await until(lambda: taken == ["b"])


def resource(plural: str, kind: str) -> Manifest:
    verbs = ["list", "watch", "patch"]
    return {"name": plural, "singularName": "", "kind": kind, "namespaced": True, "verbs": verbs}


class ErringServer:
    """An API server whose watches say that something went wrong in them."""

    def __init__(self) -> None:
        self.watches = 0
        self.port = free_port()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            self.watches += 1
            error = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd says no"}
            return web.json_response({"type": "ERROR", "object": error})
        group = {"groupVersion": "finetune.dev/v1alpha1", "version": "v1alpha1"}
        answers: dict[str, Any] = {
            "/api": {"versions": ["v1"]},
            "/api/v1": {"resources": [resource("namespaces", "Namespace")]},
            "/apis": {"groups": [{"name": "finetune.dev", "versions": [group], "preferredVersion": group}]},
            "/apis/finetune.dev/v1alpha1": {"resources": [resource("datasets", "Dataset")]},
        }
        listed = {"kind": "DatasetList", "metadata": {"resourceVersion": "1"}, "items": []}
        return web.json_response(answers.get(request.path, listed))


async def test_an_error_in_a_watch_ends_kopf_and_not_the_process() -> None:
    server = ErringServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", server.port).start()
    configuration = Configuration(host=f"http://127.0.0.1:{server.port}")
    fed = KindFeed(
        cast("Cluster", Server()),
        Caches(),
        Watches(),
        (),
        lambda sink, ended: KopfWatch(configuration, (), sink, ended),
    )
    fed.start()
    try:
        await until(lambda: server.watches >= 2)
    finally:
        await fed.stop()
        await runner.cleanup()
