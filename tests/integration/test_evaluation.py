# SPDX-License-Identifier: Apache-2.0
"""Evaluations of Checkpoints on the rows of another Dataset, on a real API server."""

from typing import Any

import pytest

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.manifests import is_true
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    team = Team(api, namespace, operators.start().wait_active())
    api.create(manifests.dataset(namespace))
    api.create(manifests.dataset(namespace, "questions"))
    return team


def trained(team: Team, name: str, **spec: Any) -> str:
    """The Checkpoint of a run that has ended."""
    team.api.create(manifests.finetunejob(team.namespace, name, **spec))
    job = until_condition(team.api, (team.namespace, "FineTuneJob", name), "Ready", team.operator)
    made: str = job["status"]["checkpoints"][0]["name"]
    return made


def evaluate(team: Team, name: str, *checkpoints: str, **spec: Any) -> None:
    team.api.create(manifests.evaluation(team.namespace, name, *checkpoints, **spec))


def until_sources(team: Team, checkpoint: str, *sources: str) -> list[Object]:
    """The scores of the Checkpoint, once they have these sources."""

    def found() -> list[Object] | None:
        record = team.api.get("Checkpoint", team.namespace, checkpoint) or {}
        scores: list[Object] = record.get("status", {}).get("evaluations", [])
        return scores if [each.get("source") for each in scores] == list(sources) else None

    return eventually(f"{checkpoint} has scores of {sources}", found, 30, lambda: team.operator.log[-4000:])


def test_two_checkpoints_are_measured_one_after_the_other_and_keep_their_scores(team: Team) -> None:
    first = trained(team, "routing")
    second = trained(team, "answers", modelLine="answers", method={"type": "QLoRA"}, evaluation=None)

    evaluate(team, "last-month", first, second)
    what = (team.namespace, "Evaluation", "last-month")
    ended = until_condition(team.api, what, "Ready", team.operator)

    assert ended["status"]["display"]["checkpoints"] == "2/2"
    of_run, asked = until_sources(team, first, "Run", "last-month")
    (only,) = until_sources(team, second, "last-month")
    assert asked["datasetDigest"] == only["datasetDigest"] != of_run["datasetDigest"]
    assert len(jobs_of_stage(team.api, team.namespace, "evaluate")) == 3

    team.api.delete("Evaluation", team.namespace, "last-month")
    eventually("its Jobs are gone", lambda: len(jobs_of_stage(team.api, team.namespace, "evaluate")) == 1)
    evaluate(team, "again", first)
    until_sources(team, first, "Run", "again", "last-month")


def test_a_run_is_evaluated_on_the_rows_of_another_dataset(team: Team) -> None:
    gates = [{"metric": "exact_match", "min": 0.8}]
    asked = {"dataset": {"ref": {"name": "questions"}}, "gates": gates}
    made = trained(team, "routing", evaluation=asked)

    (of_run,) = until_sources(team, made, "Run")
    job = team.api.get("FineTuneJob", team.namespace, "routing") or {}
    resolved = job["status"]["resolved"]
    rows = (of_run["datasetVersion"], of_run["datasetDigest"])
    assert rows == (resolved["evaluationDatasetVersion"], resolved["evaluationDatasetDigest"])
    assert resolved["datasetVersion"].startswith("tickets-")
    assert resolved["evaluationDatasetVersion"].startswith("questions-")
    assert is_true(team.api.get("Checkpoint", team.namespace, made), "Promoted")


def test_an_evaluation_measures_tasks_and_custom_metrics_as_a_run_does(team: Team) -> None:
    made = trained(team, "routing")
    profile = manifests.profile_name(team.namespace)
    team.api.patch("ComputeProfile", "", profile, {"spec": {"allow": {"customCode": True}}})
    source = {"name": "own", "key": "own"}
    evaluate(
        team,
        "own-metrics",
        made,
        tasks=[{"name": "science", "configMapRef": source}],
        customMetrics=[{"name": "polite", "configMapRef": source}],
        checks={"memorization": "Warn"},
        gates=[{"metric": "custom/polite", "min": 0.5}, {"metric": "task/science", "min": 0.4}],
    )
    what = (team.namespace, "Evaluation", "own-metrics")
    ended = until_condition(team.api, what, "Ready", team.operator)

    _, entry = until_sources(team, made, "Run", "own-metrics")
    assert [gate["verdict"] for gate in entry["gates"]] == ["Passed", "Passed"]
    assert {each["metric"] for each in entry["scores"]} >= {"custom/polite", "task/science"}
    assert {each["name"] for each in ended["status"]["stages"]} == {"evaluate", "score"}
    assert [each["name"] for each in ended["status"]["resolved"]["customMetrics"]] == ["polite"]


def test_a_missed_gate_of_an_evaluation_stalls_it_and_the_champion_stays(team: Team) -> None:
    made = trained(team, "routing")
    evaluate(team, "strict", made, gates=[{"metric": "loss", "max": -1}], metrics=["loss"])
    message = team.until_reason("Evaluation", "strict", "Stalled", "GateFailed")
    assert made in message
    until_sources(team, made, "Run", "strict")
    assert is_true(team.api.get("Checkpoint", team.namespace, made), "Promoted")


def test_an_endpoint_takes_a_champion_when_the_named_evaluation_has_measured_it(team: Team) -> None:
    made = trained(team, "routing")
    bar = {"metric": "exact_match", "min": 0.9, "evaluation": "last-month"}
    team.serve({"name": "routing", "follow": {"modelLine": "ticket-routing", "minScores": [bar]}})
    message = team.until_reason("InferenceDeployment", "support", "Reconciling", "WaitingForCheckpoint")
    assert "not measured by Evaluation last-month" in message

    evaluate(team, "last-month", made)
    team.until_served(routing=made)


def test_an_evaluation_that_is_applied_first_waits_and_a_suspended_one_has_no_job(
    team: Team, kubelet: FakeKubelet
) -> None:
    evaluate(team, "early", "routing-later")
    team.until_reason("Evaluation", "early", "Reconciling", "CheckpointNotFound")

    kubelet.held.add("evaluate")
    made = trained(team, "routing", evaluation=None)
    evaluate(team, "held", made)
    eventually("it is being measured", lambda: kubelet.started.count("evaluate") == 1, 30)
    team.api.patch("Evaluation", team.namespace, "held", {"spec": {"suspend": True}})
    team.until_reason("Evaluation", "held", "Suspended", "Suspended")
    assert jobs_of_stage(team.api, team.namespace, "evaluate") == []
    kubelet.held.clear()
    team.api.patch("Evaluation", team.namespace, "held", {"spec": {"suspend": False}})
    until_condition(team.api, (team.namespace, "Evaluation", "held"), "Ready", team.operator)
