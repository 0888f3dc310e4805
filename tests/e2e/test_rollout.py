# SPDX-License-Identifier: Apache-2.0
"""An endpoint rolls out its line's champion without losing a request, or stays if that cannot serve."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from openai import DEFAULT_MAX_RETRIES

from finetune_client.backend import Object
from finetune_client.endpoint import Endpoint, ask, open_endpoint
from finetune_operator.api.labels import REVISION
from tests.busyloops import busy_loops
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, condition_of, name_of, uid_of
from tests.waiting import eventually
from tools.demo.questions import OVERLOAD, SteadyLoad


@dataclass(frozen=True)
class Rollout:
    """A rollout with the requests from before the second run until the last old pod was deleted.

    Attributes:
        load: requests without retries.
        beside: requests with the retries of the openai SDK, while the run was evaluated and other programs
            used the processors of the machine.
    """

    load: SteadyLoad
    beside: SteadyLoad
    before: str
    after: Object
    champion: Object


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """The rows of the second run."""
    team.apply(
        manifests.configmap("tickets-v2", manifests.jsonl("shipping")),
        manifests.dataset("tickets-v2", "tickets-v2"),
    )


@pytest.fixture(scope="module")
def endpoint(team: Team, support: Object) -> Iterator[Endpoint]:
    with open_endpoint(team.access, "support", team.namespace) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def rollout(team: Team, support: Object, endpoint: Endpoint) -> Rollout:
    """A second run, whose answers are others, is promoted under two requests a second.

    It is evaluated beside two busy loops. When it is trained, the run for the last test begins: its
    checkpoint must be the younger one.
    """
    before = support["status"]["revision"]
    with endpoint.client() as client, SteadyLoad(client, "tuned", manifests.PROMPTS) as load:
        team.apply(
            manifests.finetunejob(
                "routing-v2",
                modelLine="routing",
                dataset={"ref": {"name": "tickets-v2"}},
                **manifests.judged(*manifests.BAR),
            ),
        )
        team.until("FineTuneJob", "routing-v2", "Trained")
        team.apply(
            manifests.finetunejob(
                "routing-v3",
                modelLine="routing",
                hyperparameters={**manifests.SHORT, "seed": 3},
                promotion={"mode": "Manual"},
            )
        )
        with endpoint.client(DEFAULT_MAX_RETRIES) as patient, busy_loops():
            beside = SteadyLoad(patient, "tuned", manifests.PROMPTS)
            with beside:
                champion = team.checkpoint_of(team.until("FineTuneJob", "routing-v2", "Ready"))
        eventually(
            f"the endpoint serves {name_of(champion)}",
            lambda: is_serving(team, name_of(champion)),
            PATIENCE_SECONDS,
            describe=lambda: team.describe("InferenceDeployment", "support"),
            pause=PAUSE_SECONDS,
        )
        eventually(
            f"no pod of revision {before} is left",
            lambda: not team.access.pods(team.namespace, f"{REVISION}={before}"),
            PATIENCE_SECONDS,
            describe=lambda: team.describe("InferenceDeployment", "support"),
            pause=PAUSE_SECONDS,
        )
    return Rollout(load, beside, before, team.get("InferenceDeployment", "support"), champion)


def is_serving(team: Team, checkpoint: str) -> bool:
    found = team.get("InferenceDeployment", "support")
    served = [model["checkpoint"] for model in found["status"]["models"]]
    return served == [checkpoint] and condition_of(found, "Ready") != {}


def revision_behind_service(team: Team) -> str:
    selector = json.loads(team.kubectl("get", "service", "support", "--output=json"))["spec"]["selector"]
    revision: str = selector[REVISION]
    return revision


def test_no_request_fails_while_a_new_champion_is_rolled_in(rollout: Rollout) -> None:
    load, end_of_busy = rollout.load, rollout.beside.ended[-1].at
    assert load.sent >= 20
    assert load.answered + load.failed == load.sent
    # Beside the busy loops a request may be refused or late, which is not a failure of the rollout.
    failed = [each for each in load.ended if each.failure]
    assert [each for each in failed if each.kind not in OVERLOAD or each.at > end_of_busy] == []


def test_no_request_to_an_endpoint_fails_beside_an_evaluation_on_a_busy_machine(rollout: Rollout) -> None:
    """As the openai SDK with its default retries sees it."""
    beside = rollout.beside
    assert beside.sent > 0
    assert (beside.failed, beside.failures) == (0, {})
    assert beside.answered == beside.sent


def test_the_service_points_at_the_new_revision_and_the_old_one_is_gone(
    team: Team, support: Object, rollout: Rollout
) -> None:
    after = rollout.after["status"]["revision"]
    assert after != rollout.before
    assert revision_behind_service(team) == after
    assert [name_of(each) for each in team.children("deployments", uid_of(support))] == [after]
    states = {each["name"]: each["state"] for each in rollout.after["status"]["revisions"]}
    assert states == {after: "Live", rollout.before: "Retired"}


def test_answers_come_from_the_new_champion(endpoint: Endpoint, rollout: Rollout) -> None:
    with endpoint.client() as client:
        assert ask(client, "tuned", "order late?") == "shipping"


def test_a_champion_that_cannot_start_leaves_the_old_one_serving_and_says_why(
    team: Team, keeper: Keeper, endpoint: Endpoint, rollout: Rollout
) -> None:
    run = team.until("FineTuneJob", "routing-v3", "Ready", "AwaitingApproval")
    checkpoint = team.checkpoint_of(run)
    folder = f"/store/checkpoints/{checkpoint['spec']['digest'].removeprefix('sha256:')}"
    keeper.run(f"chmod u+w {folder}/adapter_model.safetensors; echo x >> {folder}/adapter_model.safetensors")
    team.patch("checkpoint", name_of(checkpoint), {"approval": {"state": "Approved", "reason": "by hand"}})

    stalled = team.until("InferenceDeployment", "support", "Stalled", "RolloutFailed")

    message = condition_of(stalled, "Stalled")["message"]
    assert name_of(checkpoint) in message
    assert "adapter_model.safetensors" in message
    old = rollout.after["status"]["revision"]
    assert f"{old} keeps serving" in message
    assert revision_behind_service(team) == old
    with endpoint.client() as client:
        assert ask(client, "tuned", "order late?") == "shipping"
    assert stalled["status"]["models"] == rollout.after["status"]["models"]
