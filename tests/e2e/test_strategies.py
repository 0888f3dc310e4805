# SPDX-License-Identifier: Apache-2.0
"""An endpoint under load while its revisions and its pods change.

The tests are steps in their order: each starts from the revision that serves after the one before.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from finetune_client.backend import Object
from finetune_client.endpoint import ask, ask_streamed, open_endpoint
from finetune_client.errors import OperationError
from tests.e2e import manifests, operatorpods, pods
from tests.e2e.endpointunderload import EndpointUnderLoad
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, name_of, uid_of
from tools.demo.install import SYSTEM
from tools.demo.questions import SteadyLoad

NAME: Final = "strategies"
REQUESTS_PER_SECOND: Final = 4.0
LONG_SECONDS: Final = 600
"""Seconds of a pause or a bake that does not end by itself in this test."""
ROUTED_SECONDS: Final = 2.0
"""Time in which nodes stop routing requests to a pod that is reported as not ready."""


@dataclass(frozen=True)
class PinnedModel:
    """A Checkpoint as a pin, and its answer to every prompt."""

    pin: Object
    answer: str


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create a run whose answers differ from those of `routing`."""
    team.apply(
        manifests.configmap("tickets-v2", manifests.jsonl("shipping")),
        manifests.dataset("tickets-v2", "tickets-v2"),
        manifests.finetunejob(NAME, dataset={"ref": {"name": "tickets-v2"}}),
    )


@pytest.fixture(scope="module")
def first(team: Team, routing: Object) -> PinnedModel:
    """The model that the endpoint serves at first."""
    return PinnedModel({"checkpoint": name_of(team.checkpoint_of(routing))}, "billing")


@pytest.fixture(scope="module")
def second(team: Team, begun: None) -> PinnedModel:
    checkpoints = team.until("FineTuneJob", NAME, "Ready")["status"]["checkpoints"]
    (final,) = (each["name"] for each in checkpoints if each.get("final"))
    return PinnedModel({"checkpoint": final}, "shipping")


@pytest.fixture(scope="module")
def endpoint(
    team: Team, routing: Object, first: PinnedModel, second: PinnedModel
) -> Iterator[EndpointUnderLoad]:
    """The endpoint serves the first model and gets requests."""
    applied = manifests.endpoint(NAME, "routing")
    applied["spec"]["models"] = [{"name": "tuned", "pin": first.pin}]
    lineage = team.checkpoint_of(routing)["spec"]["lineage"]
    applied["spec"]["baseModel"]["digest"] = lineage["baseModel"]["digest"]
    team.apply(applied)
    uid = uid_of(team.until("InferenceDeployment", NAME, "Ready"))
    with open_endpoint(team.access, NAME, team.namespace) as opened, opened.client() as client:
        reconnecting = client.with_options(default_headers={"Connection": "close"})
        asks = (ask, ask_streamed)
        with SteadyLoad(reconnecting, "tuned", manifests.PROMPTS, REQUESTS_PER_SECOND, asks) as load:
            yield EndpointUnderLoad(team, NAME, uid, reconnecting, load)
    team.kubectl("delete", "inferencedeployment", NAME, "--wait=false")


def test_a_rollout_that_is_paused_starts_no_pod(
    endpoint: EndpointUnderLoad, first: PinnedModel, second: PinnedModel
) -> None:
    with endpoint.step("paused") as step:
        old = endpoint.serving()
        endpoint.serve({"type": "BlueGreen", "bakeSeconds": LONG_SECONDS, "paused": True}, tuned=second.pin)

        message = endpoint.until("Suspended", "Paused")

        assert f"{old} serves" in message
        assert set(endpoint.deployments()) == {old}
        assert endpoint.answer() == first.answer
    assert max(map(len, step.revisions)) == 1


def test_a_preview_has_its_own_service_until_a_decision_aborts_it(
    endpoint: EndpointUnderLoad, first: PinnedModel, second: PinnedModel
) -> None:
    with endpoint.step("BlueGreen, aborted") as step:
        old = endpoint.serving()
        endpoint.patch(strategy={"paused": False})
        endpoint.until("Suspended", "AwaitingDecision")

        endpoint.until_answered(second.answer, f"{NAME}-preview")
        assert endpoint.answer() == first.answer

        endpoint.decide("Abort")

        assert "by hand" in endpoint.until("Stalled", "RolledBack")
        endpoint.until_only(old)
        assert endpoint.answer() == first.answer
    assert endpoint.revisions()[0]["verdict"]["result"] == "Aborted"
    assert max(map(len, step.revisions)) == 2


def test_an_aborted_revision_is_tried_again_and_promoted_by_decisions(
    endpoint: EndpointUnderLoad, first: PinnedModel, second: PinnedModel
) -> None:
    with endpoint.step("BlueGreen, promoted"):
        endpoint.decide("Promote")
        endpoint.until("Suspended", "AwaitingDecision")
        assert endpoint.answer() == first.answer

        endpoint.decide("Promote", generation=2)

        endpoint.until("Ready", "Baking")
        endpoint.until_answered(second.answer)
    assert endpoint.revisions()[0]["verdict"]["result"] == "Promoted"


def test_a_crash_in_the_bake_returns_the_requests_to_the_old_revision(
    endpoint: EndpointUnderLoad, first: PinnedModel, node: Team
) -> None:
    with endpoint.step("crash in the bake, of the only replica") as step:
        new = endpoint.serving()
        (old,) = set(endpoint.deployments()) - {new}
        (pod,) = endpoint.pods(new)

        step.interrupted = time.monotonic()
        kill(node, pod)

        endpoint.until_answered(first.answer)
        step.restored = time.monotonic()
        assert f"pod {name_of(pod)} ended with exit code 137" in endpoint.until("Stalled", "RolledBack")
        endpoint.until_only(old)
    assert (endpoint.state_of(old), endpoint.state_of(new)) == ("Live", "RolledBack")


def kill(node: Team, pod: Object) -> None:
    assert "killed" in node.kubectl("exec", "killer", "--", "python3", "-c", pods.KILL, uid_of(pod))


def test_recreate_ends_the_old_pods_before_it_starts_the_new_ones(
    endpoint: EndpointUnderLoad, second: PinnedModel
) -> None:
    with endpoint.step("Recreate") as step:
        old = endpoint.serving()
        endpoint.eventually("other pods have ended", lambda: endpoint.revisions_with_pods() == {old})
        step.interrupted = time.monotonic()
        endpoint.serve({"type": "Recreate"}, tuned=second.pin)

        endpoint.until("Ready", "Serving")

        endpoint.until_answered(second.answer)
        step.restored = time.monotonic()
        new = endpoint.serving()
        endpoint.until_only(new)
    assert max(map(len, step.revisions)) == 1
    assert set.union(*step.revisions) == {old, new}


def test_a_second_replica_is_added(endpoint: EndpointUnderLoad) -> None:
    with endpoint.step("scaled from 1 to 2 replicas"):
        endpoint.patch(replicas=2)
        endpoint.until("Ready", "Serving")
        endpoint.until_ready(endpoint.serving(), 2)


def test_a_canary_answers_its_share_of_the_requests_while_the_operator_is_killed(
    endpoint: EndpointUnderLoad, first: PinnedModel, second: PinnedModel
) -> None:
    with endpoint.step("Canary, operator killed"):
        canary = {"steps": [{"setWeight": 50}, {"pause": {"seconds": LONG_SECONDS}}]}
        strategy = {"type": "Canary", "canary": canary, "bakeSeconds": LONG_SECONDS}
        endpoint.serve(strategy, tuned=first.pin)
        endpoint.eventually("the canary pauses", lambda: endpoint.revisions()[0].get("step") == 1)
        endpoint.until("Reconciling", "Canary")
        weights = {each["state"]: each["weight"] for each in endpoint.revisions() if each["weight"]}
        assert weights == {"Canary": 50, "Live": 50}

        kill_operator(endpoint)
        answers = Counter(ask(endpoint.client, "tuned", prompt) for prompt in manifests.PROMPTS)

        assert set(answers) == {first.answer, second.answer}


def kill_operator(endpoint: EndpointUnderLoad) -> None:
    for pod in operatorpods.pods_of_operator(endpoint.team.access):
        endpoint.team.access.kubectl(
            "delete", "pod", name_of(pod), f"--namespace={SYSTEM}", "--grace-period=0", "--force"
        )


def test_a_canary_is_promoted_and_aborted_in_its_bake(
    endpoint: EndpointUnderLoad, first: PinnedModel, second: PinnedModel
) -> None:
    with endpoint.step("Canary, promoted, aborted in its bake"):
        old = endpoint.serving()
        endpoint.decide("Promote")
        endpoint.until("Ready", "Baking")
        endpoint.until_routed(tuned=first.answer)

        endpoint.decide("Abort")

        endpoint.until("Stalled", "RolledBack")
        endpoint.until_answered(second.answer)
        endpoint.until_only(old)
        endpoint.until_ready(old, 2)


def test_pods_are_deleted_and_evicted_one_by_one(endpoint: EndpointUnderLoad) -> None:
    with endpoint.step("pod deleted, the other one evicted"):
        serving = endpoint.serving()
        deleted, evicted = endpoint.pods(serving)
        endpoint.team.kubectl("delete", "pod", name_of(deleted), "--wait=false")
        endpoint.eventually(
            "the budget allows no eviction", lambda: endpoint.budget()["disruptionsAllowed"] == 0
        )
        with pytest.raises(OperationError, match="disruption budget"):
            endpoint.team.evict(evicted)
        endpoint.until_ready(serving, 2, (name_of(deleted),))
        endpoint.eventually("the budget allows an eviction", lambda: endpoint.budget()["disruptionsAllowed"])

        endpoint.team.evict(evicted)

        endpoint.until_ready(serving, 2, (name_of(deleted), name_of(evicted)))


def test_a_crash_of_one_of_two_replicas_fails_only_its_own_requests(
    endpoint: EndpointUnderLoad, node: Team
) -> None:
    with endpoint.step("crash of one of two replicas") as step:
        serving = endpoint.serving()
        pod, _ = endpoint.pods(serving)
        step.interrupted = time.monotonic()
        kill(node, pod)

        endpoint.eventually("the restart is reported", lambda: restarts(endpoint, serving))
        step.restored = time.monotonic() + ROUTED_SECONDS
        endpoint.until_ready(serving, 2)


def restarts(endpoint: EndpointUnderLoad, revision: str) -> int:
    statuses = [status for pod in endpoint.pods(revision) for status in pod["status"]["containerStatuses"]]
    return sum(each["restartCount"] for each in statuses)


def test_a_model_is_added_replica_by_replica(
    endpoint: EndpointUnderLoad, first: PinnedModel, second: PinnedModel
) -> None:
    with endpoint.step("RollingUpdate with maxSurge 1, a model added"):
        endpoint.serve({"rollingUpdate": {"maxSurge": 1}}, tuned=second.pin, extra=first.pin)
        endpoint.eventually(
            "both revisions serve", lambda: endpoint.revisions()[0].get("weight") in range(1, 100)
        )
        endpoint.until("Ready", "Serving")
        endpoint.until_routed(tuned=second.answer, extra=first.answer)


def test_a_replica_is_removed(endpoint: EndpointUnderLoad) -> None:
    with endpoint.step("scaled from 2 to 1 replica"):
        endpoint.patch(replicas=1)
        endpoint.until("Ready", "Serving")
        endpoint.until_ready(endpoint.serving(), 1)


def test_a_model_is_moved_and_another_one_removed(endpoint: EndpointUnderLoad, first: PinnedModel) -> None:
    with endpoint.step("RollingUpdate, a model moved, another one removed"):
        endpoint.serve({}, tuned=first.pin)
        endpoint.until("Ready", "Serving")
        endpoint.until_routed(tuned=first.answer, extra="")
        endpoint.until_only(endpoint.serving())


def test_requests_failed_only_where_a_step_allows_it(
    endpoint: EndpointUnderLoad, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.load.stop()

    with capsys.disabled():
        print("\n\n" + "\n".join(endpoint.table()))
    assert endpoint.load.sent == len(endpoint.load.ended)
    failed = [each for each in endpoint.load.ended if each.failure]
    assert [each for each in failed if not any(step.may_fail(each) for step in endpoint.steps)] == []
