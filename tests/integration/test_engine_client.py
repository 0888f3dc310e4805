# SPDX-License-Identifier: Apache-2.0
"""The engine's requests with a real API server, and what they refuse to do."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from finetune_operator.engine.client import KubernetesClient, load_configuration
from finetune_operator.engine.errors import AlreadyExists, Conflict, Gone, NameConflict, Rejected, Unavailable
from finetune_operator.engine.executor import EventRecorder, Executor, Stamp
from finetune_operator.engine.resources import JOB, SERVICE, ResourceType, ResourceTypes
from finetune_operator.engine.store import ObjectStore
from finetune_operator.engine.watches import Reflector, Sweeper, Watches
from finetune_operator.plan import Apply, Create, Delete, Event, Manifest, Plan
from finetune_operator.runtime.caches import KIND_TYPES
from tests.integration.api import Api
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog

RECORD = KIND_TYPES["DatasetVersion"]
CONFIG_MAP = ResourceType("v1", "ConfigMap", "configmaps")
"""Used instead of one of the operator's kinds, because the test needs no status."""
USER = "engine-test"
LABELS = {"app": "engine-test"}


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[KubernetesClient]:
    configuration = await load_configuration(control_plane.client(USER))
    opened = KubernetesClient(configuration, ResourceTypes([CONFIG_MAP, RECORD]), "engine-test")
    yield opened
    await opened.close()


@pytest.fixture
async def owner(cluster: KubernetesClient, namespace: str) -> Manifest:
    """The primary object of the plans."""
    return await cluster.create(config_map(namespace, "owner"))


def config_map(namespace: str, name: str, **data: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def owned(manifest: Manifest, owner: Manifest) -> Manifest:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [reference]}}


def job(owner: Manifest, name: str = "child") -> Manifest:
    template = {
        "metadata": {"labels": LABELS},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "registry.example/none:1"}]},
    }
    metadata = {"name": name, "namespace": owner["metadata"]["namespace"], "labels": LABELS}
    return owned(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}, owner
    )


def service(owner: Manifest, **selector: str) -> Manifest:
    metadata = {"name": "service", "namespace": owner["metadata"]["namespace"], "labels": LABELS}
    spec = {"selector": selector, "ports": [{"name": "http", "port": 80}]}
    return owned({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, owner)


class Setup:
    """An executor with its caches."""

    def __init__(self, cluster: KubernetesClient) -> None:
        self.stores = {CONFIG_MAP: ObjectStore(), JOB: ObjectStore(), SERVICE: ObjectStore()}
        self.executor = Executor(
            cluster,
            self.stores,
            EventRecorder(cluster, "engine-test", "0"),
            Stamp("example.com/applied"),
            confirm_absent_before_create=lambda _manifest: False,
        )

    async def do(self, primary: Manifest, plan: Plan) -> Manifest:
        self.stores[CONFIG_MAP].put(primary)
        return await self.executor.carry_out(primary, plan)


async def test_a_created_child_is_in_the_cache_at_once_and_the_second_time_nothing_is_asked(
    cluster: KubernetesClient, owner: Manifest, audit: AuditLog
) -> None:
    setup = Setup(cluster)
    plan = Plan(create=(Create(job(owner)),))
    await setup.do(owner, plan)
    assert setup.stores[JOB].get(owner["metadata"]["namespace"], "child") is not None
    mark = audit.mark()
    await setup.do(owner, plan)
    assert not [asked for asked in audit.since(mark) if asked.user == USER]


async def test_a_child_that_exists_is_found_to_be_ours_by_another_process_too(
    cluster: KubernetesClient, owner: Manifest
) -> None:
    plan = Plan(create=(Create(job(owner)),))
    await Setup(cluster).do(owner, plan)
    other = Setup(cluster)
    await other.do(owner, plan)
    assert other.stores[JOB].get(owner["metadata"]["namespace"], "child") is not None


async def test_a_foreign_object_of_the_name_is_never_touched(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    stranger = await cluster.create(config_map(namespace, "stranger"))
    foreign = await cluster.create(job(stranger))
    with pytest.raises(NameConflict, match="Job child exists"):
        await Setup(cluster).do(owner, Plan(create=(Create(job(owner)),)))
    found = api.get("Job", namespace, "child")
    assert found is not None
    for part in ("uid", "generation", "ownerReferences", "labels"):
        assert found["metadata"][part] == foreign["metadata"][part]


async def test_an_object_of_a_predecessor_of_the_same_name_is_foreign(
    cluster: KubernetesClient, owner: Manifest
) -> None:
    predecessor = {**owner, "metadata": {**owner["metadata"], "uid": str(uuid4())}}
    left_behind = job(predecessor)
    # Otherwise the garbage collector deletes it before the test ends.
    left_behind["metadata"]["finalizers"] = ["example.com/held"]
    await cluster.create(left_behind)
    with pytest.raises(NameConflict):
        await Setup(cluster).do(owner, Plan(create=(Create(job(owner)),)))


async def test_a_record_is_ours_by_its_digest(
    cluster: KubernetesClient, owner: Manifest, namespace: str
) -> None:
    await cluster.create(record(namespace, "a"))
    setup = Setup(cluster)
    await setup.do(owner, Plan(create=(Create(record(namespace, "a"), same="Digest"),)))
    with pytest.raises(NameConflict):
        await setup.do(owner, Plan(create=(Create(record(namespace, "b"), same="Digest"),)))


def record(namespace: str, content: str) -> Manifest:
    digest = "sha256:" + content * 64
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "DatasetVersion",
        "metadata": {"name": "tickets-1", "namespace": namespace},
        "spec": {
            "dataset": "tickets",
            "digest": digest,
            "sourceDigest": digest,
            "preparationDigest": digest,
            "ruleVersion": 1,
            "format": "PromptCompletion",
            "rows": 1,
            "splits": [{"name": "train", "rows": 1, "digest": digest}],
        },
    }


async def test_what_anybody_may_have_made_is_not_even_tried_when_it_exists(
    cluster: KubernetesClient, owner: Manifest, namespace: str, audit: AuditLog
) -> None:
    await cluster.create(config_map(namespace, "shared", by="somebody"))
    mark = audit.mark()
    await Setup(cluster).do(owner, Plan(create=(Create(config_map(namespace, "shared"), same="Any"),)))
    assert not audit.writes(mark, USER)


async def test_nothing_is_created_for_an_object_that_is_gone(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    api.delete("ConfigMap", namespace, "owner")
    setup = Setup(cluster)
    with pytest.raises(Gone):
        await setup.do(owner, Plan(create=(Create(job(owner)),)))
    assert api.list("Job", namespace) == []
    assert setup.stores[CONFIG_MAP].get(namespace, "owner") is None


async def test_nothing_is_created_for_another_object_of_the_same_name(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    api.delete("ConfigMap", namespace, "owner")
    await cluster.create(config_map(namespace, "owner"))
    with pytest.raises(Gone):
        await Setup(cluster).do(owner, Plan(create=(Create(job(owner)),)))
    assert api.list("Job", namespace) == []


async def test_a_plan_from_a_stale_view_is_dropped_and_the_view_renewed(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    api.patch("ConfigMap", namespace, "owner", {"data": {"suspend": "true"}})
    setup = Setup(cluster)
    with pytest.raises(Conflict):
        await setup.do(owner, Plan(create=(Create(job(owner)),)))
    assert api.list("Job", namespace) == []
    fresh = setup.stores[CONFIG_MAP].get(namespace, "owner")
    assert fresh is not None
    assert fresh["data"] == {"suspend": "true"}


async def test_nothing_is_created_for_an_object_whose_deletion_began_meanwhile(
    cluster: KubernetesClient, namespace: str, api: Api
) -> None:
    held = config_map(namespace, "owner")
    held["metadata"]["finalizers"] = ["example.com/held"]
    seen = await cluster.create(held)
    api.delete("ConfigMap", namespace, "owner")
    with pytest.raises(Conflict):
        await Setup(cluster).do(seen, Plan(create=(Create(job(seen)),)))
    assert api.list("Job", namespace) == []
    api.patch("ConfigMap", namespace, "owner", {"metadata": {"finalizers": None}})


async def test_a_delete_takes_exactly_the_object_that_was_seen(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    setup = Setup(cluster)
    seen = await cluster.create(job(owner))
    api.patch("Job", namespace, "child", {"metadata": {"labels": {"changed": "meanwhile"}}})
    with pytest.raises(Conflict):
        await setup.do(owner, Plan(delete=(Delete(seen),)))
    renewed = setup.stores[JOB].get(namespace, "child")
    assert renewed is not None
    await setup.do(owner, Plan(delete=(Delete(renewed),)))
    left = api.get("Job", namespace, "child")
    assert left is None or "deletionTimestamp" in left["metadata"]


async def test_a_delete_of_what_is_gone_means_to_look_again(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    setup = Setup(cluster)
    seen = await cluster.create(job(owner))
    setup.stores[JOB].put(seen)
    api.delete("Job", namespace, "child")
    with pytest.raises(Conflict):
        await setup.do(owner, Plan(delete=(Delete(seen),)))


async def test_a_delete_without_what_was_seen_is_refused(cluster: KubernetesClient, owner: Manifest) -> None:
    with pytest.raises(ValueError, match="needs its uid and resourceVersion"):
        await cluster.delete(job(owner), "Foreground")


async def test_a_second_delete_of_what_is_going_asks_nothing(
    cluster: KubernetesClient, owner: Manifest, audit: AuditLog
) -> None:
    setup = Setup(cluster)
    held = service(owner)
    held["metadata"]["finalizers"] = ["example.com/held"]
    seen = await cluster.create(held)
    setup.stores[SERVICE].put(seen)
    await setup.do(owner, Plan(delete=(Delete(seen),)))
    mark = audit.mark()
    await setup.do(owner, Plan(delete=(Delete(seen),)))
    assert not [asked for asked in audit.since(mark) if asked.user == USER]


async def test_an_apply_creates_then_changes_and_is_silent_when_nothing_changes(
    cluster: KubernetesClient, owner: Manifest, namespace: str, audit: AuditLog, api: Api
) -> None:
    setup = Setup(cluster)
    await setup.do(owner, Plan(apply=(Apply(service(owner, revision="r1")),)))
    await setup.do(owner, Plan(apply=(Apply(service(owner, revision="r2")),)))
    found = api.get("Service", namespace, "service")
    assert found is not None
    assert found["spec"]["selector"] == {"revision": "r2"}
    mark = audit.mark()
    await setup.do(owner, Plan(apply=(Apply(service(owner, revision="r2")),)))
    assert not [asked for asked in audit.since(mark) if asked.user == USER]


async def test_an_apply_takes_nothing_over(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    stranger = await cluster.create(config_map(namespace, "stranger"))
    await cluster.create(service(stranger, app="theirs"))
    with pytest.raises(NameConflict):
        await Setup(cluster).do(owner, Plan(apply=(Apply(service(owner, app="ours")),)))
    found = api.get("Service", namespace, "service")
    assert found is not None
    assert found["spec"]["selector"] == {"app": "theirs"}


async def test_an_apply_does_not_resurrect(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    seen = await cluster.create(service(owner, app="a"))
    api.delete("Service", namespace, "service")
    wanted = service(owner, app="b")
    wanted["metadata"]["uid"] = seen["metadata"]["uid"]
    with pytest.raises(Conflict):
        await Setup(cluster).do(owner, Plan(apply=(Apply(wanted),)))
    assert api.get("Service", namespace, "service") is None


async def test_an_apply_with_the_uid_of_a_predecessor_leaves_the_successor_alone(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    seen = await cluster.create(service(owner, app="a"))
    api.delete("Service", namespace, "service")
    await cluster.create(service(owner, app="successor"))
    wanted = service(owner, app="b")
    wanted["metadata"]["uid"] = seen["metadata"]["uid"]
    with pytest.raises(Conflict):
        await Setup(cluster).do(owner, Plan(apply=(Apply(wanted),)))
    found = api.get("Service", namespace, "service")
    assert found is not None
    assert found["spec"]["selector"] == {"app": "successor"}


async def test_the_same_event_is_said_once_even_after_a_restart(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    event = Event("Warning", "Blocked", "PersistentVolumeClaim artifacts does not exist: create it")
    for _ in range(2):
        setup = Setup(cluster)
        for _ in range(2):
            await setup.do(owner, Plan(events=(event,)))
    said = [each for each in api.list("Event", namespace) if each["involvedObject"]["name"] == "owner"]
    assert [each["message"] for each in said] == [event.message]


async def test_a_refused_create_says_what_the_api_server_says(
    cluster: KubernetesClient, owner: Manifest
) -> None:
    wrong = job(owner)
    wrong["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(Rejected, match="restartPolicy") as raised:
        await Setup(cluster).do(owner, Plan(create=(Create(wrong),)))
    assert raised.value.code == 422


async def test_create_tells_a_taken_name_from_other_refusals(
    cluster: KubernetesClient, owner: Manifest
) -> None:
    await cluster.create(job(owner))
    with pytest.raises(AlreadyExists):
        await cluster.create(job(owner))


async def test_lists_are_read_page_by_page(
    cluster: KubernetesClient, namespace: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("finetune_operator.engine.client.PAGE_SIZE", 2)
    for number in range(5):
        await cluster.create(config_map(namespace, f"page-{number}"))
    pages = [page async for page in cluster.pages(CONFIG_MAP, namespace)]
    items = [item for page, _ in pages for item in page]
    names = {item["metadata"]["name"] for item in items}
    assert {f"page-{number}" for number in range(5)} <= names
    assert all(item["kind"] == "ConfigMap" and item["apiVersion"] == "v1" for item in items)
    assert len({resource_version for _, resource_version in pages}) == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - many things are waited for, not one event
            await asyncio.sleep(0.02)


async def test_a_reflector_follows_creations_changes_and_deletions_of_labelled_objects(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    store, watches = ObjectStore(), Watches()
    await cluster.create(job(owner, "before"))
    reflector = Reflector(cluster, JOB, store, watches, namespace=namespace, selector="app=engine-test")
    assert watches.waiting_for == (f"jobs/{namespace}",)
    task = asyncio.create_task(reflector.run())
    await asyncio.wait_for(watches.all_settled(), 20)
    assert set(store.names(namespace)) == {"before"}
    await cluster.create(job(owner, "after"))
    other = job(owner, "other")
    other["metadata"]["labels"] = {"app": "other"}
    await cluster.create(other)
    await until(lambda: set(store.names(namespace)) == {"before", "after"})
    api.delete("Job", namespace, "before")
    await until(lambda: set(store.names(namespace)) == {"after"})
    api.patch("Job", namespace, "after", {"metadata": {"labels": {"app": "other"}}})
    await until(lambda: not store.names(namespace))
    api.patch("Job", namespace, "after", {"metadata": {"labels": {"app": "engine-test"}}})
    await until(lambda: set(store.names(namespace)) == {"after"})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_reflector_lists_again_when_the_history_it_would_need_is_gone(
    cluster: KubernetesClient, owner: Manifest, namespace: str, monkeypatch: Any
) -> None:
    store, watches = ObjectStore(), Watches()
    reflector = Reflector(cluster, JOB, store, watches, namespace=namespace)
    watch, watched_from = cluster.watch, []

    async def watch_once_too_late(*args: Any, **kwargs: Any) -> AsyncGenerator[Manifest]:
        watched_from.append(args[3])
        if len(watched_from) == 1:
            # The API server's error after its history was compacted.
            status = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": "too old resource version",
            }
            yield {"type": "ERROR", "object": status}
            return
        async for event in watch(*args, **kwargs):
            yield event

    monkeypatch.setattr(cluster, "watch", watch_once_too_late)
    await cluster.create(job(owner, "before"))
    task = asyncio.create_task(reflector.run())
    await until(lambda: len(watched_from) == 2)
    assert int(watched_from[1]) >= int(watched_from[0])
    await cluster.create(job(owner, "after"))
    await until(lambda: set(store.names(namespace)) == {"before", "after"})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_watch_that_breaks_after_a_long_life_is_opened_again_at_once(
    cluster: KubernetesClient, namespace: str, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("finetune_operator.engine.watches.MAX_WAIT_SECONDS", 0.2)

    async def break_after_long(*_: Any, **__: Any) -> AsyncGenerator[Manifest]:
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "1"}}}
        await asyncio.sleep(0.3)
        raise Unavailable("the watch broke")

    monkeypatch.setattr(cluster, "watch", break_after_long)
    task = asyncio.create_task(Reflector(cluster, JOB, ObjectStore(), Watches(), namespace=namespace).run())
    await until(lambda: len(caplog.messages) >= 3)
    assert {message.partition("; ")[2] for message in caplog.messages} == {"next try in 0.1 s"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_reflector_finds_by_a_list_what_no_watch_has_told(
    cluster: KubernetesClient, owner: Manifest, namespace: str, monkeypatch: Any
) -> None:
    store, watches = ObjectStore(), Watches()

    async def tells_nothing(*_: Any, **__: Any) -> AsyncGenerator[Manifest]:
        return
        yield

    monkeypatch.setattr(cluster, "watch", tells_nothing)
    task = asyncio.create_task(Reflector(cluster, JOB, store, watches, namespace=namespace).run())
    await asyncio.wait_for(watches.all_settled(), 20)
    await cluster.create(job(owner, "untold"))
    await until(lambda: set(store.names(namespace)) == {"untold"})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_sweep_removes_what_went_away_unseen_and_then_trusts_the_watch_less(
    cluster: KubernetesClient, namespace: str, api: Api
) -> None:
    now = 0.0
    store, watches = ObjectStore(), Watches(clock=lambda: now)
    sweeper = Sweeper(cluster, CONFIG_MAP, store, watches, namespace=namespace, period_seconds=0.5)
    await cluster.create(config_map(namespace, "gone"))
    task = asyncio.create_task(sweeper.run())
    await asyncio.wait_for(watches.all_settled(), 20)
    assert "gone" in store.names(namespace)
    assert watches.waiting_for == ()
    now = 100.0
    api.delete("ConfigMap", namespace, "gone")
    await until(lambda: "gone" not in store.names(namespace))
    assert watches.ages()[sweeper.name] == 100.0
    # The list found no missed change: the watch counts as alive again.
    await until(lambda: watches.ages()[sweeper.name] == 0.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_metadata_is_merged_into_exactly_the_object_that_was_seen(
    cluster: KubernetesClient, owner: Manifest, namespace: str
) -> None:
    held = {"finalizers": ["example.com/held"], "annotations": {"example.com/mark": "a"}}
    written = await Setup(cluster).do(owner, Plan(metadata=held))
    assert written["metadata"]["finalizers"] == ["example.com/held"]
    assert written["metadata"]["annotations"] == {"example.com/mark": "a"}
    # The first state is not the newest any more.
    with pytest.raises(Conflict):
        await Setup(cluster).do(owner, Plan(metadata={"finalizers": []}))
    found = await cluster.get(CONFIG_MAP, namespace, "owner")
    assert found is not None
    assert found["metadata"]["finalizers"] == ["example.com/held"]
    await Setup(cluster).do(found, Plan(metadata={"finalizers": []}))


async def test_metadata_is_not_written_to_another_object_of_the_name(
    cluster: KubernetesClient, owner: Manifest, namespace: str, api: Api
) -> None:
    api.delete("ConfigMap", namespace, "owner")
    with pytest.raises(Conflict):
        await Setup(cluster).do(owner, Plan(metadata={"finalizers": ["example.com/held"]}))
    successor = await cluster.create(config_map(namespace, "owner"))
    with pytest.raises(Conflict):
        await Setup(cluster).do(owner, Plan(metadata={"finalizers": ["example.com/held"]}))
    stranger = {**owner, "metadata": {**successor["metadata"], "uid": owner["metadata"]["uid"]}}
    with pytest.raises(Conflict):
        await Setup(cluster).do(stranger, Plan(metadata={"finalizers": ["example.com/held"]}))
    found = await cluster.get(CONFIG_MAP, namespace, "owner")
    assert found == successor


async def test_an_object_is_forgotten_when_its_last_finalizer_goes(
    cluster: KubernetesClient, owner: Manifest, namespace: str
) -> None:
    setup = Setup(cluster)
    held = await setup.do(owner, Plan(metadata={"finalizers": ["example.com/held"]}))
    going = await cluster.delete(held, "Background")
    assert going is not None
    # Its controller may create further children until then.
    await setup.do(going, Plan(create=(Create(job(going)),)))
    await setup.do(going, Plan(metadata={"finalizers": []}))
    assert setup.stores[CONFIG_MAP].get(namespace, "owner") is None
    assert await cluster.get(CONFIG_MAP, namespace, "owner") is None
