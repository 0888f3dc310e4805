# SPDX-License-Identifier: Apache-2.0
"""Random walks over the rollout of an endpoint: whatever happens to it, what answers its requests stays.

A walk is a list of happenings: pods become ready or are lost, people edit and decide, objects disappear, the
operator is killed. After each one come passes, which must keep three invariants:

1. No pass raises an exception.
2. No revision without a ready pod gets all requests while another one with a share of them has a ready pod.
3. No pass deletes the last Deployment with a share of the requests and a ready pod.
"""

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finetune_operator.reconcile.inferencedeployment.endpoint import ObservedEndpoint
from tests.unit.operator.endpoints import (
    EndpointCluster,
    broken_pod,
    checkpoint,
    crashed_pod,
    profile,
    serving,
    unscheduled_pod,
)
from tests.unit.operator.test_endpoint_gateway import TRAFFIC, accept

STEPS: Final = {"steps": [{"setWeight": 50}, {"pause": {"seconds": 600}}]}
ENDLESS: Final = {"steps": [{"setWeight": 50}, {"pause": {}}, {"pause": {}}]}
STRATEGIES: Final[tuple[dict[str, Any], ...]] = (
    {"type": "Canary", "canary": {**STEPS, "allowCoarseWeights": True}},
    {"type": "RollingUpdate"},
    {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
    {"type": "BlueGreen", "blueGreen": {"autoPromotionSeconds": 60}},
    {"type": "Recreate"},
    {"type": "RollingUpdate", "bakeSeconds": 600},
    {"type": "RollingUpdate", "fallback": "Recreate"},
    {"type": "Canary", "canary": {**STEPS, "allowCoarseWeights": True}, "paused": True},
    {"type": "Canary", "canary": {**ENDLESS, "allowCoarseWeights": True}},
)
PASSES: Final = 2
"""Passes after each happening."""


class Walk:
    """One endpoint with a canary of two replicas, and the passes over it."""

    def __init__(self) -> None:
        self.cluster, _ = serving(replicas=2, strategy=STRATEGIES[0])
        self._champions = 1

    def take(self, happening: str, number: int) -> None:
        """Let something happen, to a Deployment chosen by the number if it happens to one."""
        names = sorted(self.cluster.deployments)
        if happening in OF_DEPLOYMENTS and names:
            OF_DEPLOYMENTS[happening](self.cluster, names[number % len(names)])
        elif happening in OTHERS:
            OTHERS[happening](self, number)
        weights = self._weights()
        for _ in range(PASSES):
            weights = self._reconcile(weights)

    def champion(self) -> None:
        """Promote another Checkpoint, as hourly retraining does."""
        self._champions += 1
        name = f"champion-{self._champions}"
        self.cluster.put(checkpoint(name, f"{self._champions % 16:x}", promoted=self._champions))

    def decide(self, number: int) -> None:
        """Decide about a revision, as a person does."""
        names = sorted({*self.cluster.deployments, "desk-none"})
        strategy = self.cluster.endpoint.spec.strategy.to_dict()
        verdict = ("Promote", "Abort", "Continue")[number % 3]
        decision = {"revision": names[number // 3 % len(names)], "verdict": verdict}
        self.cluster.edit(strategy={**strategy, "decision": decision})

    def crash(self) -> None:
        """Kill the operator within a pass, before it writes the status."""
        plan = self.cluster.cluster.plan("InferenceDeployment", "desk")
        self.cluster.cluster.carry_out("InferenceDeployment", "desk", plan, crash_before_status=True)

    def _reconcile(self, weights: dict[str, int]) -> dict[str, int]:
        """Carry out a pass. Takes and returns the percent of the requests by revision."""
        self._control()
        ready = self._ready()
        if self.cluster.endpoint.spec.traffic is not None and "desk" in self.cluster.routes:
            accept(self.cluster)
        self.cluster.reconcile()
        strategy, moved = self.cluster.endpoint.spec.strategy, self._weights()
        if "Recreate" in {strategy.type, strategy.fallback} or not self.cluster.endpoint.spec.replicas:
            return moved  # These end what serves on purpose.
        living = {name for name in weights if ready.get(name)}
        if len(moved) == 1 and moved != weights:
            (only,) = moved
            assert ready.get(only) or not living - {only}, f"{only} gets all requests of {living}"
        deleted = set(ready) - set(self.cluster.deployments)
        assert not living or living - deleted, f"{deleted} are deleted, and nothing else is ready"
        return moved

    def _weights(self) -> dict[str, int]:
        return dict(ObservedEndpoint(self.cluster.endpoint, self.cluster.snapshot()).traffic.weights())

    def _ready(self) -> dict[str, int]:
        deployments = self.cluster.deployments.items()
        return {name: each.get("status", {}).get("readyReplicas", 0) for name, each in deployments}

    def _control(self) -> None:
        """End pods that are too many, as the controllers of Kubernetes do."""
        for name, deployment in self.cluster.deployments.items():
            ready = deployment.get("status", {}).get("readyReplicas", 0)
            if ready > deployment["spec"]["replicas"]:
                set_ready(self.cluster, name, deployment["spec"]["replicas"])
        for name, pod in list(self.cluster.pods.items()):
            if pod["metadata"]["labels"]["finetune.dev/revision"] not in self.cluster.deployments:
                del self.cluster.pods[name]


def set_ready(cluster: EndpointCluster, name: str, ready: int) -> None:
    status = {"observedGeneration": 1, "replicas": ready, "readyReplicas": ready, "updatedReplicas": ready}
    cluster.deployments[name] = {**cluster.deployments[name], "status": status}


def heal(cluster: EndpointCluster, name: str) -> None:
    """All pods of a revision become ready."""
    for pod in [each for each in cluster.pods if each.startswith(name)]:
        del cluster.pods[pod]
    cluster.make_ready(name)


def lose(cluster: EndpointCluster, name: str) -> None:
    """The nodes of a revision are lost, and no other one has room for its pods."""
    set_ready(cluster, name, 0)
    cluster.put(unscheduled_pod(name))


def lose_one(cluster: EndpointCluster, name: str) -> None:
    ready = cluster.deployments[name].get("status", {}).get("readyReplicas", 0)
    set_ready(cluster, name, max(0, ready - 1))


def break_pods(cluster: EndpointCluster, name: str) -> None:
    set_ready(cluster, name, 0)
    cluster.put(broken_pod(name))


def delete_service(walk: Walk, number: int) -> None:
    del number
    walk.cluster.services.pop("desk", None)


def change_gateway(walk: Walk, number: int) -> None:
    del number
    has = walk.cluster.endpoint.spec.traffic is not None
    walk.cluster.edit(traffic=None if has else TRAFFIC)


OF_DEPLOYMENTS: Final[dict[str, Callable[[EndpointCluster, str], None]]] = {
    "ready": heal,
    "lost": lose,
    "one pod lost": lose_one,
    "broken": break_pods,
    "crashed": lambda cluster, name: cluster.put(crashed_pod(name, "2030-01-02T09:00:00Z")),
    "deadline": EndpointCluster.miss_deadline,
    "deleted": lambda cluster, name: cluster.cluster.delete("Deployment", name),
}
OTHERS: Final[dict[str, Callable[[Walk, int], None]]] = {
    "champion": lambda walk, _: walk.champion(),
    "strategy": lambda walk, number: walk.cluster.edit(strategy=STRATEGIES[number % len(STRATEGIES)]),
    "replicas": lambda walk, number: walk.cluster.edit(replicas=number % 4),
    "decision": Walk.decide,
    "gateway": change_gateway,
    "killed": lambda walk, _: walk.crash(),
    "time": lambda walk, number: walk.cluster.wait((1, 60, 601, 3600)[number % 4]),
    "Service deleted": delete_service,
    "profile": lambda walk, number: walk.cluster.put(profile(limits={"concurrentRollouts": 1 + number % 2})),
}
OFTEN: Final = ["ready", "lost", "lost", "lost", "champion", "champion", "strategy", "strategy", "decision"]
"""What happens more often in walks: the loss of pods, and the ends of a canary."""
HAPPENINGS: Final = st.lists(
    st.tuples(st.sampled_from([*OFTEN, *OF_DEPLOYMENTS, *OTHERS]), st.integers(0, 8)),
    min_size=3,
    max_size=12,
)


TO_CANARY: Final = [("champion", 0), ("ready", 0), ("ready", 1), ("ready", 0), ("ready", 1)]
"""Happenings after which two revisions share the requests, each with a ready pod."""


def walk_along(happenings: list[tuple[str, int]]) -> None:
    walk = Walk()
    for happening, number in [*TO_CANARY, *happenings]:
        walk.take(happening, number)


def bounded(walks: int) -> settings:
    """The same walks in each run."""
    return settings(
        max_examples=walks,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@bounded(15)
@given(HAPPENINGS)
def test_whatever_happens_what_answers_requests_stays(happenings: list[tuple[str, int]]) -> None:
    walk_along(happenings)


@pytest.mark.full
@bounded(1000)
@given(HAPPENINGS)
def test_of_many_walks_each_keeps_what_answers_requests(happenings: list[tuple[str, int]]) -> None:
    walk_along(happenings)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    "end",
    [("champion", 0), ("strategy", 1), ("strategy", 2), ("decision", 1), ("decision", 4), ("replicas", 1)],
)
def test_the_end_of_a_canary_never_prefers_a_dead_revision(lost: int, end: tuple[str, int]) -> None:
    walk_along([("lost", lost), end, ("time", 3)])


def test_a_canary_that_alone_answers_keeps_its_requests_if_it_is_aborted_and_tried_again() -> None:
    walk_along([("lost", 0), ("decision", 4), ("decision", 3)])


def test_a_canary_that_alone_answers_keeps_its_requests_until_the_old_revision_is_ready() -> None:
    walk = Walk()
    for happening, number in TO_CANARY:
        walk.take(happening, number)
    cluster = walk.cluster
    (old,) = (each.name for each in cluster.endpoint.status.revisions if each.state == "Live")
    (canary,) = set(cluster.deployments) - {old}
    lose(cluster, old)
    walk.take("champion", 0)
    condition = cluster.condition("Reconciling")
    assert condition is not None
    assert condition[0] == "AwaitingReplicas"
    assert f"{old} has no ready pod, so {canary} keeps its requests until it has one" in condition[1]
    assert "no node can take pod" in condition[1]
    assert set(cluster.deployments) == {old, canary}
    heal(cluster, old)
    walk.take("time", 0)
    assert cluster.points_at == old
    assert canary not in cluster.deployments
