# SPDX-License-Identifier: Apache-2.0
"""Reflectors and sweepers that may not list: they keep trying, and record the refusals."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Rejected
from finetune_operator.engine.resources import POD
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.watches import Reflector, Sweeper, Watches
from finetune_operator.plan import Manifest

NAME = "pods/team-a"
SECONDS = 5.0

Make = Callable[["Forbidding", ObjectStore, Watches], Coroutine[Any, Any, None]]


class Forbidding:
    """A fake cluster with one pod. It refuses lists until `allowed`, and watches on demand."""

    def __init__(self) -> None:
        self.allowed = asyncio.Event()
        self.asked = 0
        self.changes = False
        self.watchable = True

    async def pages(self, *_: str) -> AsyncGenerator[tuple[list[Manifest], str]]:
        self.asked += 1
        if not self.allowed.is_set():
            raise Rejected(403, "Forbidden", 'cannot list resource "pods" in the namespace "team-a"')
        version = str(self.asked if self.changes else 1)
        metadata = {"namespace": "team-a", "name": "pod", "uid": "1", "resourceVersion": version}
        yield [{"metadata": metadata}], version

    async def watch(self, *_: Any, seconds: int) -> AsyncGenerator[Manifest]:
        if not self.watchable:
            raise Rejected(403, "Forbidden", 'cannot watch resource "pods" in the namespace "team-a"')
        await asyncio.sleep(seconds)
        yield {}


def reflector(cluster: Forbidding, store: ObjectStore, watches: Watches) -> Coroutine[Any, Any, None]:
    return Reflector(cast("KubernetesClient", cluster), POD, store, watches, namespace="team-a").run()


def sweeper(cluster: Forbidding, store: ObjectStore, watches: Watches) -> Coroutine[Any, Any, None]:
    swept = Sweeper(
        cast("KubernetesClient", cluster), POD, store, watches, namespace="team-a", period_seconds=0.01
    )
    return swept.run()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_operator.engine.watches.RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr("finetune_operator.engine.watches.FIRST_RETRY_SECONDS", 0.01)


@asynccontextmanager
async def running(endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(endless)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - many things are waited for, not one event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("make", [reflector, sweeper])
async def test_a_refused_list_leaves_the_namespace_out_until_the_right_is_there(make: Make) -> None:
    cluster, store, watches = Forbidding(), ObjectStore(), Watches()
    async with running(make(cluster, store, watches)):
        await until(lambda: cluster.asked > 2)
        assert watches.left_out == ("team-a",)
        cluster.allowed.set()
        await until(lambda: watches.complete("team-a"))
    assert set(store.names("team-a")) == {"pod"}


async def test_a_list_that_is_refused_later_keeps_the_process_alive_and_the_watch_old() -> None:
    now = 0.0
    cluster, watches = Forbidding(), Watches(lambda: now)
    cluster.allowed.set()
    async with running(sweeper(cluster, ObjectStore(), watches)):
        await until(lambda: watches.complete("team-a"))
        cluster.allowed.clear()
        asked = cluster.asked
        await until(lambda: cluster.asked > asked + 1)
        now, asked = 100.0, cluster.asked
        await until(lambda: cluster.asked > asked + 1)
        assert watches.silences() == {NAME: 0.0}
        assert watches.ages() == {NAME: 100.0}


@pytest.mark.parametrize(("watchable", "silence"), [(True, 100.0), (False, 0.0)])
async def test_a_watch_that_misses_changes_is_frozen_unless_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, watchable: bool, silence: float
) -> None:
    monkeypatch.setattr("finetune_operator.engine.watches.TRY_SECONDS", 0)
    now = 0.0
    cluster, watches = Forbidding(), Watches(lambda: now)
    cluster.allowed.set()
    cluster.changes, cluster.watchable = True, watchable
    async with running(sweeper(cluster, ObjectStore(), watches)):
        await until(lambda: watches.complete("team-a"))
        now, asked = 100.0, cluster.asked
        await until(lambda: cluster.asked > asked + 2)
        assert watches.ages() == {NAME: 100.0}
        assert watches.silences() == {NAME: silence}
