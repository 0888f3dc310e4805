# SPDX-License-Identifier: Apache-2.0
"""The served Checkpoint after an evaluation, an approval, a rejection or a pin, on a real API server."""

from typing import Any

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import until_condition
from tests.integration.manifests import condition
from tests.integration.operators import Operators
from tests.integration.team import BASE, FOLLOWS, Team, weights
from tests.waiting import eventually
from tools.fakepods import digest


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    return Team(api, namespace, operators.start().wait_active())


def run(team: Team, name: str, **spec: Any) -> None:
    team.api.create(manifests.finetunejob(team.namespace, name, **spec))


def checkpoint_of(team: Team, name: str) -> str:
    """The Checkpoint of a run that succeeded."""
    job = until_condition(team.api, (team.namespace, "FineTuneJob", name), "Ready", team.operator)
    made: str = job["status"]["checkpoints"][0]["name"]
    return made


def test_with_manual_promotion_nothing_is_served_before_a_person_approves(team: Team) -> None:
    team.api.create(manifests.dataset(team.namespace))
    run(team, "routing", promotion={"mode": "Manual"})
    team.serve(FOLLOWS)
    made = checkpoint_of(team, "routing")
    team.until_reason("FineTuneJob", "routing", "Ready", "AwaitingApproval")
    assert "spec.approval.state" in team.until_reason("Checkpoint", made, "Promoted", "AwaitingApproval")
    team.until_reason("InferenceDeployment", "support", "Reconciling", "WaitingForCheckpoint")
    assert team.api.list("Deployment", team.namespace) == []
    team.judge(made, "Approved")
    team.until_served(routing=made)


def test_a_promotion_by_the_gates_still_waits_for_a_follower_that_asks_for_approval(team: Team) -> None:
    team.api.create(manifests.dataset(team.namespace))
    run(team, "routing")
    bar = {"requireApproval": True, "minScores": [{"metric": "exact_match", "min": 0.9}]}
    team.serve(FOLLOWS, name="internal")
    team.serve({"name": "routing", "follow": {"modelLine": "ticket-routing", **bar}}, name="public")
    made = checkpoint_of(team, "routing")
    team.until_served("internal", routing=made)
    assert "not approved" in team.until_reason(
        "InferenceDeployment", "public", "Reconciling", "WaitingForCheckpoint"
    )
    team.judge(made, "Approved")
    team.until_served("public", routing=made)


def test_two_runs_that_end_together_are_promoted_one_after_the_other(
    team: Team, kubelet: FakeKubelet
) -> None:
    kubelet.held.add("evaluate")
    team.api.create(manifests.dataset(team.namespace))
    runs = ("routing", "routing-v2", "routing-v3")
    for name in runs:
        run(team, name)
    eventually("all are being judged", lambda: kubelet.started.count("evaluate") == len(runs), 60)
    kubelet.held.clear()
    made = [checkpoint_of(team, name) for name in runs]
    records = [team.api.get("Checkpoint", team.namespace, name) or {} for name in made]
    records.sort(key=lambda each: each["status"]["promotedAt"])
    # Each was evaluated against the champion at the time of its promotion.
    against = [each["status"]["evaluations"][0].get("champion") for each in records]
    assert against == [None, *(each["metadata"]["name"] for each in records[:-1])]


def test_rejecting_and_deleting_roll_followers_back_and_leave_pins_alone(team: Team) -> None:
    for name in ("first", "second"):
        team.record(name)
    team.judge("first", "Approved")
    team.serve(FOLLOWS, {"name": "stable", "pin": {"checkpoint": "first"}})
    team.until_served(routing="first", stable="first")
    team.judge("second", "Approved")
    team.until_served(routing="second", stable="first")

    team.judge("second", "Rejected", "it invents teams")
    team.until_served(routing="first", stable="first")
    assert team.until_reason("Checkpoint", "second", "Promoted", "Rejected") == "rejected: it invents teams"

    team.judge("second", None)
    team.until_served(routing="second", stable="first")
    team.api.delete("Checkpoint", team.namespace, "second")
    team.until_served(routing="first", stable="first")

    team.judge("first", "Rejected")
    eventually(
        "the endpoint says what it goes on with",
        lambda: (
            "first was rejected and keeps serving" in condition(team.endpoint(), "Ready").get("message", "")
        ),
    )
    assert team.served() == {"routing": "first", "stable": "first"}


def test_weights_are_pinned_by_place_and_digest_where_there_is_no_record(team: Team) -> None:
    pinned = {"uri": weights("elsewhere"), "digest": digest("elsewhere")}
    team.serve({"name": "routing", "pin": pinned}, digest=BASE)
    team.until_served(routing=digest("elsewhere"))
    # The record appears, and the pin refers to it.
    team.record("elsewhere")
    team.serve({"name": "routing", "pin": {"checkpoint": "elsewhere"}}, digest=BASE)
    team.until_served(routing="elsewhere")


def test_a_checkpoint_of_another_base_model_is_not_rolled_out(team: Team) -> None:
    team.record("first")
    other = digest("another base model")
    team.serve({"name": "routing", "pin": {"checkpoint": "first"}}, digest=other)
    message = team.until_reason("InferenceDeployment", "support", "Reconciling", "BaseModelMismatch")
    assert other in message
    assert team.api.list("Deployment", team.namespace) == []
    team.serve({"name": "routing", "pin": {"checkpoint": "first"}}, digest=BASE)
    team.until_served(routing="first")
