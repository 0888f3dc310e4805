# SPDX-License-Identifier: Apache-2.0
"""The store only moves forward, in whatever order changes arrive."""

from typing import Any

from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest


def obj(name: str, version: int, *, uid: str = "", namespace: str = "ns", **more: Any) -> Manifest:
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
    }
    return {"apiVersion": "v1", "kind": "Thing", "metadata": {**metadata, **more}}


def named(store: ObjectStore) -> dict[str, str]:
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in store}


def test_older_news_is_ignored() -> None:
    store = ObjectStore()
    assert store.put(obj("a", 5))
    assert not store.put(obj("a", 4))
    assert not store.put(obj("a", 5))
    assert named(store) == {"a": "5"}


def test_versions_are_compared_as_numbers() -> None:
    store = ObjectStore()
    store.put(obj("a", 9))
    assert store.put(obj("a", 10))


def test_an_object_of_the_same_name_and_another_uid_replaces_the_old_one() -> None:
    store = ObjectStore()
    store.put(obj("a", 5, uid="old"))
    store.put(obj("a", 8, uid="new"))
    assert not store.remove(obj("a", 6, uid="old"))
    assert not store.put(obj("a", 5, uid="old"))
    assert store.get("ns", "a") == obj("a", 8, uid="new")


def test_a_late_event_does_not_bring_a_deleted_object_back() -> None:
    store = ObjectStore()
    store.put(obj("a", 5))
    assert store.remove(obj("a", 7))
    assert not store.put(obj("a", 6))
    assert len(store) == 0


def test_an_object_whose_labels_match_again_comes_back() -> None:
    store = ObjectStore()
    store.put(obj("a", 5))
    store.remove(obj("a", 7))
    assert store.put(obj("a", 9))


def test_a_list_removes_what_is_gone_and_counts_it() -> None:
    store = ObjectStore()
    for name in ("kept", "changed", "gone"):
        store.put(obj(name, 5))
    assert store.prune({"uid-kept", "uid-changed"}, "10") == 1
    assert named(store) == {"kept": "5", "changed": "5"}
    assert store.prune({"uid-kept", "uid-changed"}, "11") == 0


def test_a_list_does_not_remove_what_was_created_after_it() -> None:
    store = ObjectStore()
    store.put(obj("younger", 12))
    store.prune((), "10")
    assert named(store) == {"younger": "12"}


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    store = ObjectStore()
    store.put(obj("a", 5, namespace="one"))
    store.put(obj("b", 5, namespace="two"))
    store.prune((), "10", namespace="one")
    assert named(store) == {"b": "5"}


def test_indexes_follow_changes_and_deletions() -> None:
    store = ObjectStore({"team": lambda each: [each["metadata"].get("team", "none")]})
    store.put(obj("a", 1, team="red"))
    store.put(obj("b", 2, team="red"))
    store.put(obj("a", 3, team="blue"))
    assert set(store.indexed("team", "red")) == {"ns/b"}
    assert set(store.indexed("team", "blue")) == {"ns/a"}
    store.remove(obj("b", 4))
    assert not store.indexed("team", "red")


def test_an_object_may_have_one_value_of_an_index_twice() -> None:
    store = ObjectStore({"dataset": lambda each: [each["metadata"]["dataset"], each["metadata"]["dataset"]]})
    store.put(obj("a", 1, dataset="tickets"))
    store.put(obj("a", 2, dataset="tickets"))
    assert set(store.indexed("dataset", "tickets")) == {"ns/a"}
    store.remove(obj("a", 3))
    assert not store.indexed("dataset", "tickets")


def test_listeners_hear_old_and_new_state_of_every_change_and_of_nothing_else() -> None:
    heard: list[tuple[str | None, str | None]] = []

    def version(state: Manifest | None) -> str | None:
        return state["metadata"]["resourceVersion"] if state else None

    store = ObjectStore()
    store.subscribe(lambda old, new: heard.append((version(old), version(new))))
    store.put(obj("a", 1))
    store.put(obj("a", 1))
    store.put(obj("a", 2))
    store.remove(obj("a", 3))
    assert heard == [(None, "1"), ("1", "2"), ("2", None)]


def test_managed_fields_are_not_kept() -> None:
    store = ObjectStore()
    given = obj("a", 1, managedFields=[{"manager": "x"}])
    store.put(given)
    kept = store.get("ns", "a")
    assert kept is not None
    assert "managedFields" not in kept["metadata"]
    assert "managedFields" in given["metadata"]


def test_what_nobody_reads_is_not_kept_and_what_was_given_is_not_changed() -> None:
    store = ObjectStore(transform=lambda obj: {key: value for key, value in obj.items() if key != "spec"})
    given = obj("a", 1) | {"spec": {"large": True}}
    store.put(given)
    assert "spec" not in (store.get("ns", "a") or {})
    assert given["spec"] == {"large": True}


def test_after_a_restore_of_etcd_an_older_state_is_taken_over() -> None:
    store = ObjectStore()
    store.put(obj("a", 200))
    store.begin_epoch()
    assert store.put(obj("a", 150))
    assert not store.put(obj("a", 140))
    assert named(store) == {"a": "150"}


def test_after_a_restore_of_etcd_what_a_list_does_not_hold_is_gone_however_new_it_was() -> None:
    store = ObjectStore()
    store.put(obj("kept", 100))
    store.put(obj("lost", 200))
    store.begin_epoch()
    store.put(obj("kept", 100))
    assert store.prune({"uid-kept"}, "150") == 1
    assert named(store) == {"kept": "100"}


def test_after_a_restore_of_etcd_a_deletion_that_was_undone_is_undone() -> None:
    store = ObjectStore()
    store.put(obj("a", 100))
    store.remove(obj("a", 200))
    store.begin_epoch()
    assert store.put(obj("a", 100))


def test_after_a_restore_of_etcd_an_older_object_takes_its_name_back() -> None:
    store = ObjectStore()
    store.put(obj("a", 200, uid="new"))
    store.begin_epoch()
    assert store.put(obj("a", 100, uid="old"))
    assert store.get("ns", "a") == obj("a", 100, uid="old")


def test_a_new_epoch_is_told_to_whoever_asked() -> None:
    told: list[str] = []
    store = ObjectStore()
    store.subscribe_epochs(lambda: told.append("restored"))
    store.begin_epoch()
    assert told == ["restored"]
