# SPDX-License-Identifier: Apache-2.0
"""Canaries by replicas: steps of weight and time, their replicas, and their ends."""

from typing import Any

import pytest

from finetune_operator.api.rollout_strategy import CanaryStep
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.rollout.strategies import CanarySteps
from tests.unit.operator.endpoints import (
    EndpointCluster,
    checkpoint,
    crashed_pod,
    rolling,
    serving,
    serving_pod,
    states,
    unscheduled_pod,
)

STEPS: list[Manifest] = [
    {"setWeight": 20},
    {"pause": {"seconds": 60}},
    {"setWeight": 50},
    {"pause": {"seconds": 120}},
]
CANARY: Manifest = {"type": "Canary", "canary": {"steps": STEPS}}


def started(replicas: int = 5, **strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision has started; the old revision and the new one."""
    return rolling(strategy={**CANARY, **strategy}, replicas=replicas)


def begun(replicas: int = 5, **strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision is in the pause of its first step."""
    cluster, old, new = started(replicas, **strategy)
    make_ready(cluster)
    return cluster, old, new


def make_ready(cluster: EndpointCluster) -> None:
    """Carry out passes while the pods of all revisions become ready."""
    for _ in range(4):
        for name in cluster.deployments:
            cluster.make_ready(name)
        cluster.settle()


def replicas(cluster: EndpointCluster) -> dict[str, int]:
    return {name: each["spec"]["replicas"] for name, each in cluster.deployments.items()}


def weights(cluster: EndpointCluster) -> dict[str, int]:
    return {each.name: each.weight for each in cluster.endpoint.status.revisions if each.weight}


def step(cluster: EndpointCluster, name: str) -> int | None:
    (entry,) = [each for each in cluster.endpoint.status.revisions if each.name == name]
    return entry.step


def test_a_canary_starts_with_the_replicas_of_its_first_step_and_without_requests() -> None:
    cluster, old, new = started()
    assert replicas(cluster) == {old: 5, new: 1}
    assert weights(cluster) == {old: 100}
    assert cluster.points_at == old


def test_a_ready_canary_gets_its_weight_and_the_total_of_replicas_stays() -> None:
    cluster, old, new = begun()
    assert replicas(cluster) == {old: 4, new: 1}
    assert weights(cluster) == {old: 80, new: 20}
    assert states(cluster) == {new: "Canary", old: "Live"}
    assert step(cluster, new) == 1, "the pause"
    assert "finetune.dev/revision" not in cluster.services["desk"]["spec"]["selector"]
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "Canary"
    assert "gets 20 % of the requests, step 2 of 4" in message
    shown = cluster.endpoint.status
    assert shown.revision == old
    assert shown.selector == f"finetune.dev/revision in ({','.join(sorted((old, new)))})"
    assert shown.replicas == 5
    assert shown.models[0].checkpoint == "first"


def test_the_steps_end_with_all_requests_and_never_with_fewer_ready_replicas_than_asked() -> None:
    cluster, old, new = begun()
    assert cluster.reconcile().requeue_after == 60
    cluster.wait(60)
    cluster.reconcile()
    assert replicas(cluster) == {old: 4, new: 2}, "the old replicas go when the new ones are ready"
    make_ready(cluster)
    assert replicas(cluster) == {old: 3, new: 2}
    assert weights(cluster) == {old: 60, new: 40}, "50 % of 5 replicas is rounded down"
    assert step(cluster, new) == 3
    cluster.wait(120)
    cluster.reconcile()
    assert replicas(cluster) == {old: 3, new: 5}
    make_ready(cluster)
    assert replicas(cluster) == {new: 5}
    assert weights(cluster) == {new: 100}
    assert cluster.points_at == new
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert cluster.endpoint.status.models[0].checkpoint == "second"


def test_a_canary_can_bake() -> None:
    cluster, old, new = begun(bakeSeconds=300)
    for seconds in (60, 120):
        cluster.wait(seconds)
        make_ready(cluster)
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert replicas(cluster) == {old: 5, new: 5}, "a return gives it all requests at once"
    cluster.put(crashed_pod(new))
    cluster.settle()
    assert (replicas(cluster), cluster.points_at) == ({old: 5}, old)


def test_a_crash_gives_all_requests_back_before_the_canary_is_deleted() -> None:
    cluster, old, new = begun()
    cluster.put(crashed_pod(new))
    cluster.log.clear()
    cluster.settle()
    assert (replicas(cluster), cluster.points_at) == ({old: 5}, old)
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    assert cluster.log.index("apply Service desk") < cluster.log.index(f"delete {new}")


def abort(cluster: EndpointCluster, revision: str, **strategy: Any) -> None:
    decision = {"revision": revision, "verdict": "Abort", "reason": "too slow"}
    cluster.edit(strategy={**CANARY, **strategy, "decision": decision})
    cluster.settle()


@pytest.mark.parametrize("paused", [False, True])
def test_an_abort_gives_the_old_revision_its_replicas_before_the_requests(*, paused: bool) -> None:
    cluster, old, new = begun()
    abort(cluster, new, paused=paused)
    assert (replicas(cluster), weights(cluster)) == ({old: 5, new: 1}, {old: 80, new: 20})
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "RollingOut"
    assert f"too slow; {old} gets all requests when its replicas are ready" in message
    make_ready(cluster)
    assert (replicas(cluster), cluster.points_at) == ({old: 5}, old)
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    assert "too slow" in (cluster.condition("Stalled") or ("", ""))[1]


def test_each_old_replica_that_is_ready_again_takes_over_from_one_of_an_aborted_canary() -> None:
    cluster, old, new = begun()
    cluster.wait(60)
    make_ready(cluster)
    assert replicas(cluster) == {old: 3, new: 2}
    abort(cluster, new)
    assert replicas(cluster) == {old: 5, new: 2}
    status = cluster.deployments[old]["status"]
    cluster.deployments[old] = {**cluster.deployments[old], "status": {**status, "readyReplicas": 4}}
    cluster.settle()
    assert (replicas(cluster), weights(cluster)) == ({old: 5, new: 1}, {old: 60, new: 40})


def test_an_abort_without_room_for_the_old_replicas_returns_the_requests_at_once() -> None:
    cluster, old, new = begun()
    cluster.put(unscheduled_pod(old))
    abort(cluster, new)
    assert (replicas(cluster), cluster.points_at) == ({old: 5}, old)


def test_an_abort_in_the_bake_waits_for_the_replicas_of_the_old_revision() -> None:
    cluster, old, new = begun(bakeSeconds=300)
    for seconds in (60, 120):
        cluster.wait(seconds)
        make_ready(cluster)
    cluster.deployments[old] = {**cluster.deployments[old], "status": {}}
    abort(cluster, new, bakeSeconds=300)
    assert (replicas(cluster), cluster.points_at) == ({old: 5, new: 5}, new)
    assert cluster.endpoint.status.models[0].checkpoint == "second"
    make_ready(cluster)
    assert (replicas(cluster), cluster.points_at) == ({old: 5}, old)
    assert cluster.endpoint.status.models[0].checkpoint == "first"
    assert states(cluster) == {new: "RolledBack", old: "Live"}


def test_a_promotion_skips_the_steps_that_are_left() -> None:
    cluster, old, new = begun()
    cluster.edit(strategy={**CANARY, "decision": {"revision": new, "verdict": "Promote"}})
    cluster.settle()
    assert replicas(cluster) == {old: 4, new: 5}
    make_ready(cluster)
    assert (replicas(cluster), cluster.points_at) == ({new: 5}, new)


ENDLESS: list[Manifest] = [{"setWeight": 20}, {"pause": {}}, {"setWeight": 60}, {"pause": {}}, {"pause": {}}]


def decide(cluster: EndpointCluster, steps: list[Manifest], revision: str, **decision: Any) -> None:
    strategy = {"type": "Canary", "canary": {"steps": steps}}
    cluster.edit(strategy={**strategy, "decision": {"revision": revision, **decision}})
    make_ready(cluster)


def test_a_pause_without_an_end_waits_for_a_decision_as_long_as_it_takes() -> None:
    cluster, old, new = begun(canary={"steps": ENDLESS})
    assert cluster.reconcile().requeue_after is None
    cluster.wait(30 * 86400)
    make_ready(cluster)
    assert (weights(cluster), step(cluster, new)) == ({old: 80, new: 20}, 1)
    reason, message = cluster.condition("Suspended") or ("", "")
    assert reason == "AwaitingDecision"
    assert "keeps 20 % of the requests, because step 2 of 5 pauses until a decision" in message
    assert f"Set spec.strategy.decision for revision {new} to Continue, Promote or Abort" in message


def test_continue_ends_the_pause_that_holds_now_once_per_generation() -> None:
    cluster, old, new = begun(canary={"steps": ENDLESS})
    decide(cluster, ENDLESS, new, verdict="Continue")
    assert (weights(cluster), step(cluster, new)) == ({old: 40, new: 60}, 3), "the next pause holds"
    obeyed = cluster.endpoint.status.decision
    assert obeyed is not None
    assert (obeyed.verdict, obeyed.generation) == ("Continue", 1)
    decide(cluster, ENDLESS, new, verdict="Continue", generation=2)
    assert step(cluster, new) == 4, "the last pause holds"
    decide(cluster, ENDLESS, new, verdict="Continue", generation=3)
    assert (replicas(cluster), cluster.points_at) == ({new: 5}, new)


def test_continue_that_no_pause_needs_does_not_end_a_later_one() -> None:
    cluster, _, new = started(canary={"steps": ENDLESS})
    cluster.edit(
        strategy={
            **CANARY,
            "canary": {"steps": ENDLESS},
            "decision": {"revision": new, "verdict": "Continue"},
        }
    )
    make_ready(cluster)
    assert step(cluster, new) == 1
    assert (cluster.condition("Suspended") or ("", ""))[0] == "AwaitingDecision"
    assert cluster.endpoint.status.decision is not None


def test_continue_waits_until_the_pods_of_the_step_are_ready_again() -> None:
    cluster, old, new = begun(canary={"steps": ENDLESS})
    cluster.deployments[new] = {**cluster.deployments[new], "status": {}}
    cluster.edit(
        strategy={
            **CANARY,
            "canary": {"steps": ENDLESS},
            "decision": {"revision": new, "verdict": "Continue"},
        }
    )
    cluster.settle()
    assert step(cluster, new) == 1
    assert cluster.endpoint.status.decision is None
    make_ready(cluster)
    assert (weights(cluster), step(cluster, new)) == ({old: 40, new: 60}, 3)


def test_continue_ends_a_pause_of_seconds_before_its_time() -> None:
    cluster, old, new = begun()
    decide(cluster, STEPS, new, verdict="Continue")
    assert (weights(cluster), step(cluster, new)) == ({old: 60, new: 40}, 3)


def test_a_crash_ends_a_pause_without_an_end() -> None:
    cluster, old, new = begun(canary={"steps": ENDLESS})
    cluster.put(crashed_pod(new))
    cluster.settle()
    assert (cluster.points_at, states(cluster)[new]) == (old, "RolledBack")


def test_a_promotion_ends_a_pause_and_skips_the_steps_that_are_left() -> None:
    cluster, _, new = begun(canary={"steps": ENDLESS})
    decide(cluster, ENDLESS, new, verdict="Promote")
    assert (replicas(cluster), cluster.points_at) == ({new: 5}, new)


def test_a_pause_of_the_spec_holds_the_step() -> None:
    cluster, old, new = begun()
    cluster.edit(strategy={**CANARY, "paused": True})
    cluster.wait(600)
    make_ready(cluster)
    assert weights(cluster) == {old: 80, new: 20}
    assert (cluster.condition("Suspended") or ("", ""))[0] == "Paused"
    cluster.edit(strategy=CANARY)
    make_ready(cluster)
    assert weights(cluster) == {old: 60, new: 40}


def test_another_champion_takes_the_requests_back_before_its_own_canary_starts() -> None:
    cluster, old, second = begun()
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.settle()
    assert (replicas(cluster), weights(cluster)) == ({old: 5, second: 1}, {old: 80, second: 20})
    cluster.make_ready(old)
    cluster.reconcile()
    assert cluster.points_at == old
    assert set(cluster.deployments) == {old, second}, "a split Service would select the third one too"
    cluster.settle()
    assert second not in cluster.deployments
    assert len(cluster.deployments) == 2
    assert states(cluster)[second] == "Retired"


def test_a_return_to_the_old_champion_ends_the_canary_when_the_old_replicas_are_ready() -> None:
    cluster, old, new = begun()
    cluster.edit(models=[{"name": "router", "pin": {"checkpoint": "first"}}])
    cluster.settle()
    assert (replicas(cluster), weights(cluster)) == ({old: 5, new: 1}, {old: 80, new: 20})
    make_ready(cluster)
    assert replicas(cluster) == {old: 5}
    assert states(cluster) == {new: "Retired", old: "Live"}


def test_a_change_of_the_strategy_returns_the_requests_before_the_rollout_begins_again() -> None:
    cluster, old, new = begun()
    cluster.put(serving_pod(old))
    cluster.edit(strategy={"type": "Recreate"})
    cluster.settle()
    assert (replicas(cluster), weights(cluster)) == ({old: 5, new: 1}, {old: 80, new: 20})
    cluster.make_ready(old)
    cluster.reconcile()
    assert (states(cluster), cluster.points_at) == ({old: "Live", new: "Retired"}, old)
    cluster.reconcile()
    assert (states(cluster)[new], cluster.points_at) == ("RollingOut", old), "its only replica is too few"
    assert replicas(cluster)[old] == 0
    make_ready(cluster)
    assert (states(cluster)[new], cluster.points_at) == ("Live", new)


def test_scaling_keeps_the_weight() -> None:
    cluster, old, new = begun()
    cluster.edit(replicas=10)
    make_ready(cluster)
    assert replicas(cluster) == {old: 8, new: 2}
    assert weights(cluster) == {old: 80, new: 20}


def test_scaling_to_zero_ends_the_canary() -> None:
    cluster, old, _ = begun()
    cluster.edit(replicas=0)
    cluster.settle()
    assert (replicas(cluster), cluster.points_at) == ({old: 0}, old)


def test_a_weight_that_no_replica_has_is_refused_with_the_replicas_that_would_do() -> None:
    cluster, old = serving(strategy=CANARY, replicas=3)
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    assert replicas(cluster) == {old: 3}
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "WeightNotAchievable"
    assert "Set spec.replicas to 5 or more" in message
    cluster.edit(replicas=5)
    cluster.settle()
    assert len(cluster.deployments) == 2


def test_coarse_weights_are_those_of_one_replica() -> None:
    cluster, old, new = begun(2, canary={"steps": STEPS, "allowCoarseWeights": True})
    assert replicas(cluster) == {old: 1, new: 1}
    assert weights(cluster) == {old: 50, new: 50}
    assert cluster.endpoint.status.revision == old


def test_a_canary_of_the_only_replica_leaves_the_old_one() -> None:
    cluster, old, new = begun(1, canary={"steps": STEPS, "allowCoarseWeights": True})
    assert replicas(cluster) == {old: 1, new: 1}
    assert weights(cluster) == {old: 50, new: 50}
    cluster.wait(60)
    make_ready(cluster)
    cluster.wait(120)
    make_ready(cluster)
    assert replicas(cluster) == {new: 1}


def test_a_step_without_capacity_waits_with_the_weight_before_it() -> None:
    cluster, old, new = begun()
    cluster.wait(60)
    cluster.reconcile()
    cluster.put(unscheduled_pod(new))
    cluster.settle()
    assert weights(cluster) == {old: 80, new: 20}
    assert (cluster.condition("Reconciling") or ("", ""))[0] == "NoCapacityForSurge"
    assert replicas(cluster) == {old: 4, new: 2}


def test_an_edited_service_is_restored() -> None:
    cluster, old, new = begun()
    service = cluster.services["desk"]
    cluster.services["desk"] = {**service, "spec": {**service["spec"], "selector": {"app": "mine"}}}
    make_ready(cluster)
    assert weights(cluster) == {old: 80, new: 20}
    assert cluster.services["desk"]["spec"]["selector"] == {"finetune.dev/run": "endpoint-uid"}


def test_a_split_service_that_selects_one_revision_by_hand_is_restored() -> None:
    cluster, old, _ = begun()
    service = cluster.services["desk"]
    selector = {**service["spec"]["selector"], "finetune.dev/revision": old}
    cluster.services["desk"] = {**service, "spec": {**service["spec"], "selector": selector}}
    make_ready(cluster)
    assert cluster.services["desk"]["spec"]["selector"] == {"finetune.dev/run": "endpoint-uid"}


def test_without_a_profile_each_revision_keeps_its_replicas() -> None:
    cluster, old, new = begun()
    cluster.cluster.remove("ComputeProfile", "standard")
    cluster.settle()
    assert replicas(cluster) == {old: 4, new: 1}


def test_the_first_revision_has_no_steps() -> None:
    cluster, revision = serving(strategy=CANARY, replicas=1)
    assert states(cluster) == {revision: "Live"}


@pytest.mark.parametrize("total", range(1, 40))
def test_a_weight_never_exceeds_what_a_step_allows(total: int) -> None:
    for weight in range(1, 100):
        steps = CanarySteps((CanaryStep(set_weight=weight),), total, is_coarse=False)
        if steps.needed_replicas is None:
            assert 0 < steps.weight_at(0) <= weight
            assert 100 * steps.replicas_at(0) <= weight * total
            assert steps.replicas_at(0) < total
        else:
            assert total < steps.needed_replicas
            enough = CanarySteps(steps.steps, steps.needed_replicas, is_coarse=False)
            assert enough.needed_replicas is None
