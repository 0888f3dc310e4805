# SPDX-License-Identifier: Apache-2.0
"""Judges: what the evaluate pod gets, and how gates on their win rates are decided."""

from typing import Any

import pytest

from finetune_operator.api.evaluation import EvaluationSettings, Gate, Score
from finetune_operator.reconcile.verdicts import Measurements, decide_gates
from finetune_trainer.contract.evaluation import GateEvidence
from finetune_trainer.contract.results import Score as MeasuredScore
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import evaluated
from tests.unit.operator.runsteps import reached
from tests.unit.operator.test_reconcile_live import crown, end_of, evaluating, evaluation_of, measured

TONE: dict[str, Any] = {
    "name": "tone",
    "model": "referee",
    "instructions": "Kind answers are better.",
}
GATE = {"metric": "judge/tone", "min": 0.5, "confidence": 0.95}


def judged(result: StageResult, value: float, **evidence: Any) -> StageResult:
    """The result with a win rate and what the trainer says about the only gate."""
    assert result.evaluate is not None
    score = MeasuredScore(metric="judge/tone", subject="Tuned", value=value, rows=24)
    found = GateEvidence(gate=0, rows=24, value=value, **evidence)
    update = {"scores": (*result.evaluate.scores, score), "evidence": (found,)}
    return result.model_copy(update={"evaluate": result.evaluate.model_copy(update=update)})


def secrets_of(cluster: MemoryCluster, stage: str) -> set[str]:
    volumes = cluster.stage_job(stage)["spec"]["template"]["spec"]["volumes"]
    return {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}


def test_preflight_and_evaluate_get_the_judges_and_their_secrets() -> None:
    judges = [TONE, {**TONE, "name": "very.polite", "credentialsSecretRef": {"name": "referee"}}]
    cluster = reached("evaluate", evaluation={"judges": judges})

    first, second = cluster.config("evaluate").judges
    assert (first.name, first.against, first.max_calls, first.credentials) == ("tone", "Base", 1000, None)
    assert (second.metric, second.credentials.name) == ("judge/very.polite", "referee")
    assert second.credentials.path == "/var/run/finetune/credentials/judge-1"
    assert secrets_of(cluster, "evaluate") == {"referee"}
    assert secrets_of(cluster, "preflight") == {"referee"}
    assert cluster.config("preflight").judges == (first, second)
    assert secrets_of(cluster, "train") == set()


@pytest.mark.parametrize(
    ("settings", "metrics"),
    [
        ({"metrics": ["loss"]}, ("exact_match", "loss")),
        ({"metrics": ["accuracy"]}, ("accuracy",)),
        (
            {"metrics": ["accuracy"], "options": {"constrainedLabels": True}},
            ("exact_match", "accuracy"),
        ),
    ],
)
def test_a_judge_needs_generated_answers(settings: dict[str, Any], metrics: tuple[str, ...]) -> None:
    spec = EvaluationSettings.model_validate({"judges": [TONE], "gates": [GATE], **settings})
    assert spec.measured_metrics == metrics


def test_the_opponent_is_measured() -> None:
    spec = {"compare": [], "judges": [{**TONE, "against": "Prompted"}]}
    assert EvaluationSettings.model_validate(spec).subjects == ("Tuned", "Prompted")
    reference = {"compare": [], "judges": [{**TONE, "against": "Reference"}]}
    assert EvaluationSettings.model_validate(reference).subjects == ("Tuned",)


@pytest.mark.parametrize(
    ("low", "high", "end"),
    [
        (0.55, 0.8, "Promoted"),
        (0.4, 0.8, "EvaluationUndecided"),
        (0.1, 0.3, "GateFailed"),
    ],
)
def test_the_bound_of_a_win_rate_decides(low: float, high: float, end: str) -> None:
    cluster = reached("evaluate", evaluation={"judges": [TONE], "gates": [GATE]})
    value = (low + high) / 2

    cluster.succeed("evaluate", judged(evaluated(), value, low=low, high=high), after=10)
    cluster.settle()

    assert end_of(cluster) == end
    (gate,) = evaluation_of(cluster).gates
    assert (gate.metric, gate.over, gate.value) == ("judge/tone", "Base", value)


def test_a_judge_without_a_value_leaves_its_gate_undecided_with_the_reason() -> None:
    why = "judge tone: https://judge.example/v1: status 401: no such key; correct Secret referee"
    measurements = Measurements(
        (Score(metric="exact_match", subject="Tuned", value=1, rows=24),),
        evidence={0: GateEvidence(gate=0, rows=0, undecided=why)},
        opponents={"judge/tone": "Base"},
    )
    (result,), verdict = decide_gates((Gate.model_validate(GATE),), measurements)
    assert verdict == "Undecided"
    assert result.message == f"judge/tone of the tuned model was not measured: {why}"


def test_without_a_champion_a_judge_against_it_does_not_apply() -> None:
    judges = [{**TONE, "against": "Live"}]
    gates = [{"metric": "exact_match", "min": 0.8}, GATE]
    cluster = evaluating(judges=judges, gates=gates)
    assert cluster.config("evaluate").judges == ()

    cluster.succeed("evaluate", measured(cluster), after=10)
    cluster.settle()

    assert end_of(cluster) == "Promoted"
    assert [gate.verdict for gate in evaluation_of(cluster).gates] == ["Passed", "NotApplicable"]


def test_a_new_champion_is_judged_again() -> None:
    judges = [{**TONE, "against": "Live"}]
    cluster = evaluating("1", judges=judges, gates=[GATE])
    cluster.start("evaluate")
    crown(cluster, "2")

    first = judged(measured(cluster), 0.7, low=0.6, high=0.8)
    cluster.succeed("evaluate", first, after=10)
    cluster.settle()

    assert cluster.config("evaluate").live.name == "rival-2"
    again = judged(measured(cluster), 0.3, low=0.2, high=0.4)
    cluster.succeed("evaluate", again, after=10)
    cluster.settle()
    assert end_of(cluster) == "GateFailed"
    (gate,) = evaluation_of(cluster).gates
    assert (gate.over, gate.value) == ("Live", 0.3)


def test_a_stored_win_rate_over_another_champion_is_not_used() -> None:
    judges = [{**TONE, "against": "Live"}]
    cluster = evaluating("1", judges=judges, gates=[GATE])
    result = judged(measured(cluster), 0.9, low=0.8, high=0.95)
    assert result.evaluate is not None
    other = result.evaluate.model_copy(update={"live": f"sha256:{'9' * 64}"})

    cluster.succeed("evaluate", result.model_copy(update={"evaluate": other}), after=10)
    cluster.settle()

    assert end_of(cluster) == "EvaluationUndecided"
    assert "judge/tone" not in {score.metric for score in evaluation_of(cluster).scores}
