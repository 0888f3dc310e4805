# SPDX-License-Identifier: Apache-2.0
"""Settled objects take a tenth of the memory and read like all others."""

import json
from typing import Any

import pytest

from finetune_operator.engine.cache_memory import CompressionPolicy, Compressor
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest


def obj(name: str, version: int, state: str = "done", **more: Any) -> Manifest:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Thing", "metadata": metadata, "status": {"state": state}, **more}


def is_done(each: Manifest) -> bool:
    return bool(each["status"]["state"] in {"done", "failed"})


def state_of(each: Manifest) -> str:
    return str(each["status"]["state"])


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore({"state": lambda each: [state_of(each)]}, settled=CompressionPolicy(is_done, state_of))


def test_what_is_unpacked_equals_what_was_packed() -> None:
    packer = Compressor()
    things = [
        obj(f"thing-{number}", number, note="größer 😀 \x00", score=0.1 + number) for number in range(3)
    ]
    packed = [packer.pack(thing) for thing in things]
    assert [packer.unpack(each) for each in packed] == things


def test_much_alike_objects_take_a_fraction_of_their_json() -> None:
    packer = Compressor()
    spec = {f"field{number}": f"value {number}" for number in range(100)}
    packer.pack(obj("first", 1, spec=spec))
    other = obj("second", 2, spec={**spec, "field7": "another"})
    assert len(packer.pack(other)) < len(json.dumps(other)) / 10


def test_a_settled_object_reads_like_any_other(store: ObjectStore) -> None:
    store.put(obj("a", 1))
    store.put(obj("b", 2, "working"))
    assert store.get("team", "a") == obj("a", 1)
    assert dict(store.names("team")) == {"a": obj("a", 1), "b": obj("b", 2, "working")}
    assert dict(store.indexed("state", "done")) == {"team/a": obj("a", 1)}
    assert sorted(each["metadata"]["name"] for each in store) == ["a", "b"]
    assert len(store) == 2


def test_settled_objects_are_told_and_counted_without_reading_them(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (obj("a", 1), obj("b", 2), obj("c", 3, "failed"), obj("d", 4, "working")):
        store.put(each)

    def refuse(*_: object) -> Manifest:
        raise AssertionError("read")

    monkeypatch.setattr(Compressor, "unpack", refuse)
    assert list(store.addresses()) == [("team", name) for name in "abcd"]
    assert store.notes() == {("team", "done"): 2, ("team", "failed"): 1}
    assert [each["metadata"]["name"] for each in store.unsettled] == ["d"]
    assert [store.is_settled("team", name) for name in "adx"] == [True, False, False]
    assert [store.version_of("team", name) for name in "adx"] == [1, 4, 0]
    assert store.prune({f"uid-{name}" for name in "abcd"}, "9") == 0


def test_an_object_may_settle_and_begin_again(store: ObjectStore) -> None:
    heard: list[tuple[str, str]] = []
    store.subscribe(lambda old, new: heard.append((state_of(old or obj("", 0, "-")), state_of(new or {}))))
    store.put(obj("a", 1, "working"))
    store.put(obj("a", 2, "done"))
    store.put(obj("a", 3, "working"))
    assert heard == [("-", "working"), ("working", "done"), ("done", "working")]
    assert store.notes() == {}
    assert not store.indexed("state", "done")
    assert set(store.indexed("state", "working")) == {"team/a"}


def test_listeners_hear_the_last_state_of_a_settled_object_that_is_gone(store: ObjectStore) -> None:
    heard: list[tuple[Manifest | None, Manifest | None]] = []
    store.put(obj("a", 1))
    store.subscribe(lambda old, new: heard.append((old, new)))
    store.remove(obj("a", 2))
    assert heard == [(obj("a", 1), None)]
    assert not store.indexed("state", "done")


def test_a_settled_object_that_is_read_again_and_again_is_unpacked_once(store: ObjectStore) -> None:
    store.put(obj("a", 1))
    assert store.get("team", "a") is store.get("team", "a")
    store.put(obj("a", 2))
    assert (store.get("team", "a") or {})["metadata"]["resourceVersion"] == "2"


def test_of_managed_fields_the_names_may_be_kept() -> None:
    store = ObjectStore(keep_managers=True)
    fields = {
        "manager": "somebody",
        "operation": "Apply",
        "subresource": "status",
        "fieldsV1": {"f:spec": {}},
    }
    given = obj("a", 1)
    given["metadata"]["managedFields"] = [fields]
    store.put(given)
    held = store.get("team", "a") or {}
    assert held["metadata"]["managedFields"] == [{"manager": "somebody", "subresource": "status"}]
    assert given["metadata"]["managedFields"] == [fields]
