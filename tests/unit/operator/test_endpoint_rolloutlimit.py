# SPDX-License-Identifier: Apache-2.0
"""`limits.concurrentRollouts` of a profile limits how many endpoints replace their revision at once."""

from datetime import timedelta
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.plan import Key
from finetune_operator.reconcile.inferencedeployment.kind import rollout_lock
from finetune_operator.reconcile.inferencedeployment.rollout.concurrency import is_replacing, slot_of
from finetune_operator.reconcile.scheduling import related
from tests.unit.operator.endpoints import NOW, EndpointCluster, checkpoint, profile
from tests.unit.operator.memorycluster import MemoryCluster

NEXT: Final = {"trainer": "registry.example/trainer:2"}


def other(
    name: str = "chat", serving: str = "old", state: str = "RollingOut", **spec: object
) -> InferenceDeployment:
    """An endpoint of another team, on the default profile."""
    return InferenceDeployment.model_validate(
        {
            "kind": "InferenceDeployment",
            "metadata": {"name": name, "namespace": "another-team", "uid": f"uid-of-{name}"},
            "spec": {
                "baseModel": {"uri": "pvc://models/base"},
                "models": [{"name": "chat", "follow": {"modelLine": "chat"}}],
                **spec,
            },
            "status": {"revision": serving, "revisions": [{"name": "new", "state": state}]},
        }
    )


def limited(**images: str) -> ComputeProfile:
    return profile(limits={"concurrentRollouts": 1}, images=images)


def serving_cluster() -> tuple[EndpointCluster, str]:
    """An endpoint that serves, on a profile that allows one rollout at a time."""
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.put(limited())
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    return cluster, revision


def edit_profile(cluster: EndpointCluster) -> None:
    cluster.put(limited(trainer="registry.example/trainer:2"))


def test_an_endpoint_waits_with_what_it_serves_while_another_on_its_profile_rolls() -> None:
    cluster, old = serving_cluster()
    cluster.put(other())
    edit_profile(cluster)
    cluster.settle()
    assert list(cluster.deployments) == [old]
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "Queued"
    assert "ComputeProfile standard has limits.concurrentRollouts 1" in message
    cluster.put(other(serving="new", state="Live"))
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_a_paused_rollout_holds_no_slot() -> None:
    cluster, _ = serving_cluster()
    cluster.put(other(strategy={"paused": True}))
    edit_profile(cluster)
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_an_endpoint_whose_rollout_became_impossible_holds_no_slot() -> None:
    cluster, old = serving_cluster()
    edit_profile(cluster)
    cluster.settle()
    assert len(cluster.deployments) == 2
    cluster.edit(serving={"toolCallParser": "hermes"})
    cluster.settle()
    assert (cluster.condition("Stalled") or ("", ""))[0] == "UnsupportedByEngine"
    assert list(cluster.deployments) == [old]
    assert not is_replacing(cluster.endpoint)


def test_a_pause_wakes_the_endpoints_that_wait_for_the_slot() -> None:
    cluster, _ = serving_cluster()
    cluster.put(other())
    edit_profile(cluster)
    cluster.settle()
    paused = other(strategy={"paused": True})
    woken = related("InferenceDeployment", other().to_dict(), paused.to_dict(), cluster.cluster.reader())
    assert Key("InferenceDeployment", "team", "desk") in woken


def test_an_endpoint_that_rolls_already_goes_on() -> None:
    cluster, _ = serving_cluster()
    edit_profile(cluster)
    cluster.settle()
    cluster.put(other())
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_a_new_endpoint_does_not_wait_and_is_waited_for_by_nobody() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.put(limited())
    cluster.put(other())
    cluster.settle()
    assert len(cluster.deployments) == 1
    cluster, old = serving_cluster()
    cluster.put(other(serving=""), other("mail", serving="new"))
    edit_profile(cluster)
    cluster.settle()
    assert set(cluster.deployments) > {old}


def test_endpoints_on_other_profiles_do_not_count() -> None:
    cluster, _ = serving_cluster()
    cluster.put(other(compute={"profile": "h100"}))
    edit_profile(cluster)
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_whoever_waits_is_looked_at_again_when_another_has_changed_wherever_it_is() -> None:
    cluster, _ = serving_cluster()
    cluster.put(other())
    edit_profile(cluster)
    cluster.settle()
    known = MemoryCluster(cluster.endpoint.to_dict())
    before, after = other().to_dict(), other(state="Live").to_dict()
    assert related("InferenceDeployment", before, before, known.reader()) == frozenset()
    for now in (after, None):
        keys = related("InferenceDeployment", before, now, known.reader())
        assert keys == {Key("InferenceDeployment", "team", "desk")}


def test_passes_over_endpoints_overlap_unless_they_share_a_limit() -> None:
    endpoint = EndpointCluster().endpoint
    one = {"standard": limited()}
    by_default = {"standard": profile()}
    assert rollout_lock(endpoint, by_default) != rollout_lock(other(), by_default)
    assert rollout_lock(endpoint, by_default) == rollout_lock(EndpointCluster().endpoint, by_default)
    assert rollout_lock(endpoint, one) == rollout_lock(other(), one)
    assert rollout_lock(other(compute={"profile": "standard"}), one) == rollout_lock(endpoint, one)
    assert rollout_lock(other(compute={"profile": "h100"}), one) is None


def test_a_rollout_holds_its_slot_no_longer_than_the_profile_allows() -> None:
    cluster, old = serving_cluster()
    stuck = other().to_dict()
    stuck["status"]["revisions"][0]["since"] = cluster.cluster.now.isoformat()
    cluster.put(stuck)
    cluster.put(profile(limits={"concurrentRollouts": 1, "progressDeadlineSeconds": 600}, images=NEXT))
    cluster.settle()
    assert list(cluster.deployments) == [old]
    assert cluster.reconcile().requeue_after == 600
    cluster.wait(600)
    cluster.settle()
    assert len(cluster.deployments) == 2


def queued(name: str, namespace: str) -> InferenceDeployment:
    """An endpoint that waits for a slot."""
    waiting = other(name, state="Live").to_dict()
    waiting["metadata"] |= {"namespace": namespace}
    return InferenceDeployment.model_validate(waiting)


def turns(*waiting: InferenceDeployment, slots: int = 1, minutes: int = 60) -> list[list[str]]:
    """The endpoints that may take a slot in each minute, if none of them does."""
    uses = profile(limits={"concurrentRollouts": slots})
    return [
        [
            each.metadata.name
            for each in waiting
            if slot_of(each, uses, (), lambda: waiting, NOW + timedelta(minutes=minute)).is_free
        ]
        for minute in range(minutes)
    ]


def test_namespaces_take_turns_however_many_endpoints_they_have() -> None:
    many = [queued(f"many-{number}", "greedy") for number in range(30)]
    found = turns(*many, queued("one", "modest"))
    assert {len(names) for names in found} == {1}, "no slot stays free, and none is taken twice"
    assert found.count(["one"]) == 30
    assert {name for (name,) in found} == {each.metadata.name for each in many} | {"one"}


def test_each_namespace_gets_one_of_several_slots_before_another_gets_two() -> None:
    found = turns(*(queued(f"{team}-{n}", team) for team in "abc" for n in range(3)), slots=3)
    assert all({name[0] for name in names} == set("abc") for names in found)


def test_an_endpoint_whose_turn_it_is_not_is_checked_again_at_the_next_turn() -> None:
    waiting = [queued("first", "a"), queued("second", "b")]
    now = NOW.replace(second=20)
    limited = profile(limits={"concurrentRollouts": 1})
    found = [slot_of(each, limited, (), lambda: waiting, now) for each in waiting]
    assert sorted((each.is_free, each.recheck_seconds) for each in found) == [(False, 40), (True, None)]


def test_endpoints_that_wait_for_something_else_have_no_turn() -> None:
    paused = queued("paused", "b").to_dict()
    paused["spec"]["strategy"] = {"paused": True}
    started = queued("started", "c").to_dict()
    started["status"]["revisions"][0]["state"] = "WaitingForCapacity"
    others = [InferenceDeployment.model_validate(each) for each in (paused, started)]
    waiting = queued("waiting", "a")
    for minute in range(5):
        now = NOW + timedelta(minutes=minute)
        assert slot_of(waiting, profile(limits={"concurrentRollouts": 1}), (), lambda: others, now).is_free


def test_a_profile_without_a_limit_allows_one_rollout_per_namespace() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    cluster.settle()
    (revision,) = cluster.deployments
    cluster.make_ready(revision)
    cluster.settle()
    neighbour = other().to_dict()
    neighbour["metadata"]["namespace"] = "team"
    cluster.put(neighbour)
    cluster.put(profile(images={"trainer": "registry.example/trainer:2"}))
    cluster.settle()
    assert list(cluster.deployments) == [revision]
    assert "allows 1 per namespace" in (cluster.condition("Reconciling") or ("", ""))[1]
    cluster.cluster.remove("InferenceDeployment", "chat")
    cluster.put(other())
    cluster.settle()
    assert len(cluster.deployments) == 2, "an endpoint of another namespace does not count"
