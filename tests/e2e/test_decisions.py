# SPDX-License-Identifier: Apache-2.0
"""Evaluations that decide: what is promoted, what is not, and why; and one that is interrupted."""

import json
from collections.abc import Sequence
from typing import Any, Final

import pytest

from finetune_client.backend import Object
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.team import Team, condition_of, name_of, uid_of

ANSWER: Final = "billing"
TRAINING: Final = manifests.PROMPTS
HELD_OUT: Final = tuple(
    f"{subject} {what}?"
    for what in ("torn", "gone", "wet")
    for subject in ("order", "invoice", "card", "box", "ticket", "password", "parcel", "refund")
)
"""As many rows as a gate with a confidence needs for a value of 1."""
CONFIDENCE: Final = 0.95
LINE: Final = "decisions"
BARS: Final = (
    {"metric": "exact_match", "min": 0.8, "confidence": CONFIDENCE},
    {"metric": "loss", "minGain": 0, "over": "Base", "confidence": CONFIDENCE},
    {"metric": "loss", "minGain": 0, "over": "Prompted", "confidence": CONFIDENCE},
    {"metric": "loss", "minGain": 0, "over": "Live", "confidence": CONFIDENCE},
)
EVALUATION: Final = {
    "metrics": ["exact_match", "loss"],
    "compare": ["Base", "Prompted", "Live"],
    "gates": list(BARS),
    "prompted": {"systemPrompt": "Name the team.", "examples": 2},
}


def rows() -> str:
    """Training and test rows, all with ANSWER."""
    parts = {"train": TRAINING, "test": HELD_OUT}
    lines = (
        {"prompt": prompt, "completion": ANSWER, "part": part}
        for part, prompts in parts.items()
        for prompt in prompts
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def run_of(name: str, *, epochs: int, learning_rate: float = 0.01, line: str = LINE) -> Object:
    """A run with the evaluation that decides."""
    return manifests.finetunejob(
        name,
        modelLine=line,
        dataset={"ref": {"name": LINE}},
        hyperparameters={"epochs": epochs, "learningRate": learning_rate},
        evaluation=EVALUATION,
        promotion={"mode": "ByGates"},
    )


def begin(team: Team, keeper: Keeper, request: pytest.FixtureRequest) -> None:
    team.apply(
        manifests.configmap(LINE, rows()),
        manifests.dataset(LINE, LINE, split={"column": "part"}),
        run_of("first", epochs=12),
        run_of("unchanged", epochs=1, learning_rate=1e-12, line="unchanged"),
    )


def gates_of(run: Object) -> dict[tuple[str, str | None], Object]:
    """The results of the gates by metric and compared model."""
    specs: Sequence[Any] = run["spec"]["evaluation"]["gates"]
    results: Sequence[Any] = run["status"]["evaluation"]["gates"]
    return {(spec["metric"], spec.get("over")): result for spec, result in zip(specs, results, strict=True)}


@pytest.fixture(scope="module")
def first(team: Team, begun: None) -> Object:
    """The first champion of the line."""
    return team.until("FineTuneJob", "first", "Ready", "Promoted")


@pytest.fixture(scope="module")
def better(team: Team, first: Object) -> Object:
    """A run that is better than the first champion."""
    team.apply(run_of("better", epochs=40))
    return team.until("FineTuneJob", "better", "Ready", "Promoted")


def test_a_gate_over_live_does_not_apply_to_the_first_champion(first: Object) -> None:
    gates = gates_of(first)
    assert gates["loss", "Live"]["verdict"] == "NotApplicable"
    assert {gates["loss", "Base"]["verdict"], gates["loss", "Prompted"]["verdict"]} == {"Passed"}
    assert gates["exact_match", None]["verdict"] == "Passed"


def test_a_model_that_is_better_than_base_prompted_and_live_is_promoted(team: Team, better: Object) -> None:
    assert {result["verdict"] for result in gates_of(better).values()} == {"Passed"}
    subjects = {score["subject"] for score in better["status"]["evaluation"]["scores"]}
    assert subjects == {"Tuned", "Base", "Prompted", "Live"}
    assert condition_of(team.checkpoint_of(better), "Promoted")["status"] == "True"


@pytest.fixture(scope="module")
def worse(team: Team, better: Object) -> Object:
    """A run with the spec of the first champion, whose evaluate pod is evicted while it measures."""
    team.apply(run_of("worse", epochs=12))
    uid = uid_of(team.get("FineTuneJob", "worse"))
    pod = team.pod(uid, "evaluate")
    team.until_logged(pod, "measuring")
    team.evict(pod)
    team.pod(uid, "evaluate", other_than=(name_of(pod),))
    return team.until("FineTuneJob", "worse", "Stalled", "GateFailed")


def test_a_model_that_loses_to_live_is_not_promoted(team: Team, better: Object, worse: Object) -> None:
    gates = gates_of(worse)
    assert gates["loss", "Live"]["verdict"] == "Failed"
    assert gates["loss", "Base"]["verdict"] == "Passed"
    assert "Live" in condition_of(worse, "Stalled")["message"]
    assert condition_of(team.checkpoint_of(better), "Promoted")["status"] == "True"


def test_weights_that_change_nothing_are_vetoed(team: Team, begun: None) -> None:
    ended = team.until("FineTuneJob", "unchanged", "Stalled")
    assert "base model" in condition_of(ended, "Stalled")["message"]
    assert condition_of(team.checkpoint_of(ended), "Promoted")["status"] == "False"


def test_an_evaluation_that_is_evicted_has_the_answers_of_one_that_is_left_alone(
    keeper: Keeper, first: Object, worse: Object
) -> None:
    calm, disturbed = (predictions(keeper, uid_of(each), "Tuned") for each in (first, worse))
    assert disturbed == calm
    assert len(calm) == len(HELD_OUT)


def predictions(keeper: Keeper, uid: str, subject: str) -> dict[int, tuple[str, dict[str, float]]]:
    """Text and values of each row, by number."""
    lines = keeper.run(f"cat /store/runs/{uid}/evaluate/predictions.jsonl").splitlines()[1:]
    parsed = map(json.loads, lines)
    return {each["row"]: (each["text"], each["metrics"]) for each in parsed if each["subject"] == subject}
