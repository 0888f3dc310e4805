# SPDX-License-Identifier: Apache-2.0
"""An Evaluation of the session's trained Checkpoint on the rows of another Dataset."""

import json

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of, name_of, uid_of
from tests.waiting import eventually

NAME = "last-month"


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    """Create rows of which the model answers half correctly: it has learned to answer `billing` to all."""
    prompts = manifests.PROMPTS
    rows = manifests.jsonl("billing", prompts[:3]) + manifests.jsonl("dispatch", prompts[3:6])
    only_questions = {"split": {"validation": 0, "test": 0}}
    team.apply(
        manifests.configmap("questions", rows), manifests.dataset("questions", "questions", **only_questions)
    )


def both(team: Team, routing: Object) -> list[Object] | None:
    """The scores of the run and of the Evaluation, once the Checkpoint has them."""
    scores: list[Object] = team.checkpoint_of(routing)["status"]["evaluations"]
    return scores if len(scores) == 2 else None


@pytest.fixture(scope="module")
def evaluated(team: Team, routing: Object) -> Object:
    """The Evaluation when it has ended."""
    spec = {
        "checkpoints": [name_of(team.checkpoint_of(routing))],
        "dataset": {"ref": {"name": "questions"}, "split": "train"},
        "metrics": ["exact_match"],
        "compare": [],
        "gates": [{"metric": "exact_match", "min": 0.9}],
        "profile": manifests.CPU,
        "deletionPolicy": "Delete",
    }
    team.apply(manifests.of("Evaluation", NAME, spec))
    return team.until("Evaluation", NAME, "Stalled", "GateFailed")


def test_an_old_checkpoint_is_judged_on_new_rows(team: Team, routing: Object, evaluated: Object) -> None:
    (entry,) = evaluated["status"]["evaluations"]
    assert [(each["subject"], each["value"], each["rows"]) for each in entry["scores"]] == [("Tuned", 0.5, 6)]
    assert condition_of(evaluated, "Evaluated")["status"] == "True"
    assert evaluated["status"]["cost"]["deviceSeconds"] > 0

    of_run, asked = eventually("the Checkpoint has the scores", lambda: both(team, routing))
    assert (of_run["source"], asked["source"]) == ("Run", NAME)
    assert asked == entry
    assert condition_of(team.checkpoint_of(routing), "Promoted")["status"] == "True"


def test_deleting_an_evaluation_removes_its_folders_and_no_score(
    team: Team, keeper: Keeper, routing: Object, evaluated: Object
) -> None:
    uid = uid_of(evaluated)
    assert uid in keeper.run("ls /store/runs")

    team.kubectl("delete", "evaluation", NAME)

    assert uid not in keeper.run("ls /store/runs")
    scores = both(team, routing) or []
    assert [each["source"] for each in scores] == ["Run", NAME]
    assert json.dumps(scores[1]["scores"]) == json.dumps(evaluated["status"]["evaluations"][0]["scores"])
