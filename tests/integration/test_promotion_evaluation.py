# SPDX-License-Identifier: Apache-2.0
"""What an evaluation says about a promotion: the champion it compares with, vetoes, and undecided gates."""

from typing import Any

import pytest

from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.evaluation import CheckFinding, GateEvidence
from finetune_trainer.contract.results import StageResult
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually
from tools.fakepods import digest, succeeded


def better_than(model: str) -> dict[str, Any]:
    """An evaluation whose gate needs a gain over a model."""
    return {"gates": [{"metric": "exact_match", "minGain": 0, "over": model, "confidence": 0.95}]}


class Evaluations:
    """All stages succeed, and the result of evaluate has other fields."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def __call__(self, config: StageConfig) -> StageResult | None:
        result = succeeded(config)
        if result.evaluate is None:
            return result
        return result.model_copy(update={"evaluate": result.evaluate.model_copy(update=self.fields)})


@pytest.fixture
def outcome() -> Evaluations:
    return Evaluations()


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    return Team(api, namespace, operators.start().wait_active())


def evaluate(team: Team, evaluation: dict[str, Any]) -> None:
    team.api.create(manifests.dataset(team.namespace))
    team.api.create(manifests.finetunejob(team.namespace, evaluation=evaluation))


def crown(team: Team, name: str) -> None:
    """Create a Checkpoint and make it the champion."""
    team.record(name)
    team.judge(name, "Approved")
    team.until_reason("Checkpoint", name, "Promoted", "Promoted")


def test_a_champion_that_changes_during_the_evaluation_is_compared_with_before_the_promotion(
    team: Team, kubelet: FakeKubelet
) -> None:
    crown(team, "first")
    kubelet.held.add("evaluate")
    evaluate(team, better_than("Live"))
    eventually("the evaluation runs", lambda: "evaluate" in kubelet.started, 60)
    crown(team, "second")
    kubelet.held.clear()

    job = until_condition(team.api, (team.namespace, "FineTuneJob", "routing"), "Ready", team.operator)

    evaluation = job["status"]["evaluation"]
    assert (evaluation["champion"], evaluation["live"]) == ("second", "second")
    assert job["status"]["live"] == {"checkpoint": "second", "digest": digest("second"), "renewals": 1}
    assert kubelet.started.count("evaluate") == len(jobs_of_stage(team.api, team.namespace, "evaluate")) == 2
    made = job["status"]["checkpoints"][0]["name"]
    message = team.until_reason("Checkpoint", made, "Promoted", "Promoted")
    assert "exact_match gain 1 over Live (0 → 1), at least 1 at confidence 0.95 (> 0)" in message


VETO = CheckFinding(check="noChange", veto=True, message="the adapter answers as its base model does")
UNDECIDED = GateEvidence(gate=0, value=1, gain=1, gain_low=-0.1, gain_high=1, rows=200, more_rows=300)


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"findings": (VETO,)}, "Vetoed", "the adapter answers as its base model does"),
        ({"evidence": (UNDECIDED,)}, "EvaluationUndecided", "about 300 more rows would decide it"),
    ],
    ids=["vetoed", "undecided"],
)
def test_what_is_vetoed_or_undecided_is_not_promoted_and_says_why(
    team: Team, outcome: Evaluations, fields: dict[str, Any], reason: str, message: str
) -> None:
    outcome.fields = fields
    evaluate(team, better_than("Base"))

    job = until_condition(team.api, (team.namespace, "FineTuneJob", "routing"), "Stalled", team.operator)

    assert message in team.until_reason("FineTuneJob", "routing", "Stalled", reason)
    made = job["status"]["checkpoints"][0]["name"]
    assert message in team.until_reason("Checkpoint", made, "Promoted", reason)
