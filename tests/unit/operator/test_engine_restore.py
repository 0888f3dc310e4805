# SPDX-License-Identifier: Apache-2.0
"""After a restore of etcd, older versions replace what the stores knew before."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Conflict, Unavailable
from finetune_operator.engine.executor import EventRecorder, Executor, Stamp
from finetune_operator.engine.resources import POD, ResourceTypes
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.watches import BATCH_SIZE, Reflector, Watches, read_list
from finetune_operator.plan import Manifest


def pod(name: str, version: int) -> Manifest:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


class Listed:
    """A fake cluster of pods. Its lists have one version and run `meanwhile` before they end."""

    types = ResourceTypes()

    def __init__(self, version: int, *pods: Manifest) -> None:
        self.version = version
        self.pods = {each["metadata"]["name"]: each for each in pods}
        self.meanwhile: Callable[[], object] = lambda: None

    async def pages(self, *_: Any) -> AsyncGenerator[tuple[list[Manifest], str]]:
        pods = list(self.pods.values())
        self.meanwhile()
        yield pods, str(self.version)

    async def get(self, _type: Any, _namespace: str, name: str) -> Manifest | None:
        return self.pods.get(name)


async def listed(cluster: Listed, store: ObjectStore) -> int:
    return (await read_list(cast("KubernetesClient", cluster), store, POD)).missed


async def test_a_page_of_a_list_lets_the_rest_of_the_process_run() -> None:
    store, sizes = ObjectStore(), list[int]()

    async def rest_of_the_process() -> None:
        while len(store) < 100:
            sizes.append(len(store))
            await asyncio.sleep(0)

    cluster = Listed(200, *(pod(f"pod-{number}", number + 1) for number in range(100)))
    await asyncio.gather(listed(cluster, store), rest_of_the_process())
    assert max(after - before for before, after in itertools.pairwise([*sizes, 100])) <= BATCH_SIZE


async def test_a_list_that_is_older_than_what_was_seen_before_it_replaces_the_store() -> None:
    store = ObjectStore()
    for each in (pod("kept", 100), pod("changed", 200), pod("lost", 210)):
        store.put(each)
    restored = Listed(150, pod("kept", 100), pod("changed", 120), pod("back", 90))
    assert await listed(restored, store) == 4
    versions = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in store}
    assert versions == {"kept": "100", "changed": "120", "back": "90"}
    assert await listed(restored, store) == 0


async def test_a_list_that_has_overtaken_what_was_seen_shows_a_restore_by_an_older_object() -> None:
    store = ObjectStore()
    for each in (pod("changed", 200), pod("lost", 210)):
        store.put(each)
    assert await listed(Listed(300, pod("changed", 120)), store) == 2
    versions = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in store}
    assert versions == {"changed": "120"}


async def test_what_is_seen_while_a_list_is_read_is_no_sign_of_a_restore() -> None:
    store = ObjectStore()
    store.put(pod("a", 100))
    epochs: list[None] = []
    store.subscribe_epochs(lambda: epochs.append(None))
    cluster = Listed(150, pod("a", 100))

    def changes() -> None:
        store.put(pod("a", 160))
        store.put(pod("b", 170))

    cluster.meanwhile = changes
    await listed(cluster, store)
    assert epochs == []
    versions = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in store}
    assert versions == {"a": "160", "b": "170"}


async def test_a_bookmark_counts_as_seen() -> None:
    store = ObjectStore()
    store.put(pod("a", 100))
    store.note_version(400)
    epochs: list[None] = []
    store.subscribe_epochs(lambda: epochs.append(None))
    await listed(Listed(300, pod("a", 100)), store)
    assert epochs == [None]


async def test_a_pass_that_meets_an_older_live_object_takes_it_over_and_the_next_pass_goes_on() -> None:
    store = ObjectStore()
    store.put(pod("a", 200))
    cluster = cast("KubernetesClient", Listed(150, pod("a", 150)))
    executor = Executor(
        cluster,
        {POD: store},
        EventRecorder(cluster, "test", "0"),
        Stamp("x"),
        confirm_absent_before_create=lambda _: False,
    )
    with pytest.raises(Conflict):
        await executor.confirm(cast("Manifest", store.get("team", "a")))
    await executor.confirm(cast("Manifest", store.get("team", "a")))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - many things are waited for, not one event
            await asyncio.sleep(0.005)


class Broken(Listed):
    """A fake cluster whose first watch sends one change, then nothing, then breaks."""

    def __init__(self, version: int, *pods: Manifest) -> None:
        super().__init__(version, *pods)
        self.watched_from: list[str] = []
        self.lists = 0

    async def pages(self, *args: Any) -> AsyncGenerator[tuple[list[Manifest], str]]:
        self.lists += 1
        async for page in super().pages(*args):
            yield page

    async def newest(self, *_: Any) -> int:
        return self.version

    async def watch(self, *args: Any, seconds: int) -> AsyncGenerator[Manifest]:
        self.watched_from.append(args[3])
        if len(self.watched_from) == 1:
            yield {"type": "MODIFIED", "object": pod("a", 120)}
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "130"}}}
            raise Unavailable("the watch broke")
        await asyncio.sleep(seconds)


@asynccontextmanager
async def reflecting(cluster: Broken, store: ObjectStore) -> AsyncIterator[None]:
    task = asyncio.create_task(Reflector(cast("KubernetesClient", cluster), POD, store, Watches()).run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_broken_watch_goes_on_from_its_last_event_or_bookmark() -> None:
    cluster, store = Broken(140, pod("a", 100)), ObjectStore()
    cluster.version = 110
    async with reflecting(cluster, store):
        await until(lambda: cluster.watched_from == ["110"])
        cluster.version = 140
        await until(lambda: len(cluster.watched_from) == 2)
    assert cluster.watched_from == ["110", "130"]
    assert cluster.lists == 1


async def test_a_broken_watch_of_a_restored_etcd_lists_again_and_watches_from_there() -> None:
    """Otherwise it gets no events before the API server reaches the requested version again."""
    cluster, store = Broken(110, pod("a", 100)), ObjectStore()
    async with reflecting(cluster, store):
        # The watch had reached 130, and the restored etcd is at 105.
        await until(lambda: store.newest == 130)
        cluster.version = 105
        await until(lambda: len(cluster.watched_from) == 2)
    assert cluster.watched_from == ["110", "105"]
    assert store.get("team", "a") == pod("a", 100)
