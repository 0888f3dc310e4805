# SPDX-License-Identifier: Apache-2.0
"""Gates: by measured values, by the bounds at a confidence, and against a line without a champion."""

from itertools import product
from typing import Any

import pytest

from finetune_operator.api.evaluation import MAX_SCORES, Gate, Score
from finetune_operator.reconcile.verdicts import (
    MIN_ROWS,
    Measurements,
    decide_gates,
    few_rows_warning,
    select_scores,
)
from finetune_trainer.contract.evaluation import CheckFinding, GateEvidence
from finetune_trainer.report.evaluation.content import gate_verdict
from finetune_trainer.report.evaluation.facts import ShownGate

SCORES = (
    Score(metric="exact_match", subject="Tuned", value=0.95, rows=24),
    Score(metric="exact_match", subject="Base", value=0.65, rows=24),
    Score(metric="loss", subject="Tuned", value=0.2, rows=24),
    Score(metric="loss", subject="Base", value=3.1, rows=24),
    Score(metric="f1_token", subject="Tuned", value=0.96, rows=24),
    Score(metric="f1_token", subject="Base", value=0.7, rows=24),
)
MEASURED = Measurements(SCORES)

GATES: list[tuple[dict[str, Any], str, str]] = [
    ({"metric": "exact_match", "min": 0.8}, "Passed", "exact_match 0.95 ≥ 0.8"),
    ({"metric": "exact_match", "min": 0.95}, "Passed", "exact_match 0.95 ≥ 0.95"),
    ({"metric": "exact_match", "min": 0.96}, "Failed", "exact_match 0.95 < 0.96"),
    ({"metric": "loss", "max": 0.5}, "Passed", "loss 0.2 ≤ 0.5"),
    ({"metric": "loss", "max": 0.1}, "Failed", "loss 0.2 > 0.1"),
    (
        {"metric": "exact_match", "min_gain": 0.3, "over": "Base"},
        "Passed",
        "exact_match gain 0.3 over Base (0.65 → 0.95) ≥ 0.3",
    ),
    (
        {"metric": "exact_match", "min_gain": 0.4, "over": "Base"},
        "Failed",
        "exact_match gain 0.3 over Base (0.65 → 0.95) < 0.4",
    ),
    (
        {"metric": "exact_match", "min_gain": 0, "over": "Base"},
        "Passed",
        "exact_match gain 0.3 over Base (0.65 → 0.95) > 0",
    ),
    (
        {"metric": "f1_token", "min": 0.9, "min_gain": 0.3, "over": "Base"},
        "Failed",
        "f1_token 0.96 ≥ 0.9, f1_token gain 0.26 over Base (0.7 → 0.96) < 0.3",
    ),
    ({"metric": "loss", "min_gain": 2, "over": "Base"}, "Passed", "loss gain 2.9 over Base (3.1 → 0.2) ≥ 2"),
    (
        {"metric": "loss", "max": 1, "min_gain": 3, "over": "Base"},
        "Failed",
        "loss 0.2 ≤ 1, loss gain 2.9 over Base (3.1 → 0.2) < 3",
    ),
    (
        {"metric": "exact_match", "min_gain": 0.1, "over": "Live"},
        "Undecided",
        "exact_match of Live was not measured",
    ),
]


@pytest.mark.parametrize(("gate", "verdict", "message"), GATES)
def test_a_gate_compares_and_says_with_what(gate: dict[str, Any], verdict: str, message: str) -> None:
    results, overall = decide_gates((Gate(**gate),), MEASURED)
    assert (results[0].verdict, results[0].message, overall) == (verdict, message, verdict)


def test_a_model_that_equals_its_base_gains_nothing() -> None:
    same = tuple(Score(metric="exact_match", subject=who, value=0.65, rows=24) for who in ("Tuned", "Base"))
    results, verdict = decide_gates(
        (Gate(metric="exact_match", min_gain=0, over="Base"),), Measurements(same)
    )
    assert (verdict, results[0].message) == ("Failed", "exact_match gain 0 over Base (0.65 → 0.65) ≤ 0")
    assert (
        decide_gates((Gate(metric="exact_match", min_gain=-0.1, over="Base"),), Measurements(same))[1]
        == "Passed"
    )


def test_one_failed_gate_fails_all_and_an_undecided_one_never_passes() -> None:
    good, bad = Gate(metric="exact_match", min=0.5), Gate(metric="exact_match", min=0.99)
    unknown = Gate(metric="exact_match", min_gain=0.1, over="Live")
    assert decide_gates((good, bad, unknown), MEASURED)[1] == "Failed"
    assert decide_gates((good, unknown), MEASURED)[1] == "Undecided"
    assert decide_gates((good,), MEASURED)[1] == "Passed"
    assert decide_gates((), MEASURED)[1] == "NoGates"
    assert decide_gates((good,), Measurements(()))[1] == "Undecided"


CONFIDENT: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (
        {"metric": "exact_match", "min": 0.8},
        {"low": 0.82, "high": 0.99},
        "Passed",
        "exact_match 0.95, at least 0.82 at confidence 0.95 (≥ 0.8)",
    ),
    (
        {"metric": "exact_match", "min": 0.9},
        {"low": 0.82, "high": 0.99, "more_rows": 120},
        "Undecided",
        (
            "exact_match 0.95, between 0.82 and 0.99 at confidence 0.95: ≥ 0.9 is undecided, and about 120"
            " more rows would decide it"
        ),
    ),
    (
        {"metric": "exact_match", "min": 0.995},
        {"low": 0.82, "high": 0.99},
        "Failed",
        "exact_match 0.95, at most 0.99 at confidence 0.95 (< 0.995)",
    ),
    (
        {"metric": "loss", "max": 0.3},
        {"low": 0.1, "high": 0.28},
        "Passed",
        "loss 0.2, at most 0.28 at confidence 0.95 (≤ 0.3)",
    ),
    (
        {"metric": "loss", "max": 0.05},
        {"low": 0.1, "high": 0.28},
        "Failed",
        "loss 0.2, at least 0.1 at confidence 0.95 (> 0.05)",
    ),
    (
        {"metric": "loss", "max": 0.2},
        {"low": 0.1, "high": 0.28},
        "Undecided",
        "loss 0.2, between 0.1 and 0.28 at confidence 0.95: ≤ 0.2 is undecided, and more rows may decide it",
    ),
    (
        {"metric": "exact_match", "min_gain": 0, "over": "Base"},
        {"gain": 0.3, "gain_low": 0.1, "gain_high": 0.5},
        "Passed",
        "exact_match gain 0.3 over Base (0.65 → 0.95), at least 0.1 at confidence 0.95 (> 0)",
    ),
    (
        {"metric": "exact_match", "min_gain": 0, "over": "Base"},
        {"gain": 0.3, "gain_low": 0.0, "gain_high": 0.5, "more_rows": 1},
        "Undecided",
        (
            "exact_match gain 0.3 over Base (0.65 → 0.95), between 0 and 0.5 at confidence 0.95: > 0 is"
            " undecided, and about 1 more rows would decide it"
        ),
    ),
    (
        {"metric": "loss", "min_gain": -0.1, "over": "Base"},
        {"gain": 2.9, "gain_low": -0.2, "gain_high": -0.15},
        "Failed",
        "loss gain 2.9 over Base (3.1 → 0.2), at most -0.15 at confidence 0.95 (< -0.1)",
    ),
    (
        {"metric": "exact_match", "min": 0.99, "min_gain": 0.2, "over": "Base"},
        {"low": 0.8, "high": 0.98, "gain_low": 0.25, "gain_high": 0.4},
        "Failed",
        (
            "exact_match 0.95, at most 0.98 at confidence 0.95 (< 0.99), exact_match gain 0.3 over Base (0.65"
            " → 0.95), at least 0.25 at confidence 0.95 (≥ 0.2)"
        ),
    ),
    (
        {"metric": "exact_match", "min": 0.8},
        {"undecided": "fewer than 20 groups: collect rows of more customers"},
        "Undecided",
        "exact_match 0.95: fewer than 20 groups: collect rows of more customers",
    ),
    (
        {"metric": "exact_match", "min": 0.8},
        {},
        "Undecided",
        "exact_match 0.95: the rows give no bounds, and more rows may decide it",
    ),
    (
        {"metric": "loss", "min": 0.1},
        {"low": 0.15},
        "Passed",
        "loss 0.2, at least 0.15 at confidence 0.95 (≥ 0.1)",
    ),
    (
        {"metric": "loss", "max": 0.3},
        {"low": 0.15, "more_rows": 9},
        "Undecided",
        (
            "loss 0.2, between 0.15 and an unknown value at confidence 0.95: ≤ 0.3 is undecided, and about 9"
            " more rows would decide it"
        ),
    ),
]


@pytest.mark.parametrize(("gate", "evidence", "verdict", "message"), CONFIDENT)
def test_a_gate_with_a_confidence_is_decided_by_the_bounds_and_not_by_the_value(
    gate: dict[str, Any], evidence: dict[str, Any], verdict: str, message: str
) -> None:
    measured = Measurements(SCORES, evidence={0: GateEvidence(gate=0, rows=24, **evidence)})

    (result,), overall = decide_gates((Gate(confidence=0.95, **gate),), measured)

    assert (result.verdict, result.message, overall) == (verdict, message, verdict)
    assert (result.confidence, result.rows, result.more_rows) == (0.95, 24, evidence.get("more_rows"))


def test_the_evidence_of_each_gate_is_found_by_its_index() -> None:
    gates = (
        Gate(metric="exact_match", min=0.8, confidence=0.9),
        Gate(metric="exact_match", min=0.8, confidence=0.99),
    )
    evidence = {
        1: GateEvidence(gate=1, low=0.7, high=1, rows=24),
        0: GateEvidence(gate=0, low=0.85, high=1, rows=24),
    }

    results, verdict = decide_gates(gates, Measurements(SCORES, evidence=evidence))

    assert [result.verdict for result in results] == ["Passed", "Undecided"]
    assert verdict == "Undecided"


def test_without_evidence_a_gate_with_a_confidence_is_undecided() -> None:
    (result,), verdict = decide_gates((Gate(metric="exact_match", min=0.8, confidence=0.95),), MEASURED)

    assert verdict == "Undecided"
    assert "the rows give no bounds" in result.message


def test_evidence_does_not_change_a_gate_without_a_confidence() -> None:
    evidence = {0: GateEvidence(gate=0, low=0.1, high=0.2, gain=9, rows=24, undecided="unclear")}
    gate = Gate(metric="exact_match", min=0.8)

    (result,), _ = decide_gates((gate,), Measurements(SCORES, evidence=evidence))

    assert (result.verdict, result.message) == ("Passed", "exact_match 0.95 ≥ 0.8")


LIVE = Gate(metric="exact_match", min_gain=0, over="Live")


@pytest.mark.parametrize(
    ("bounds", "verdict", "overall"),
    [
        ({}, "NotApplicable", "Passed"),
        ({"min": 0.9}, "NotApplicable", "Passed"),
        ({"min": 0.96}, "Failed", "Failed"),
    ],
)
def test_a_gain_over_live_does_not_apply_before_the_first_champion_but_the_other_bounds_do(
    bounds: dict[str, float], verdict: str, overall: str
) -> None:
    gate = LIVE.model_copy(update=bounds)

    (result,), decided = decide_gates((gate,), Measurements(SCORES, has_champion=False))

    assert (result.verdict, decided) == (verdict, overall)
    assert "exact_match has no gain over Live, because the model line has no other champion" in result.message


def test_a_champion_that_cannot_be_read_leaves_its_gates_undecided_with_the_reason() -> None:
    measured = Measurements(SCORES, unmeasured={"Live": "its weights are not in the store"})

    (result,), verdict = decide_gates((LIVE,), measured)

    assert verdict == "Undecided"
    assert result.message == "exact_match of Live was not measured: its weights are not in the store"


@pytest.mark.parametrize("over", ["Prompted", "Live"])
def test_a_gain_over_any_model_is_compared(over: str) -> None:
    other = Score(metric="exact_match", subject=over, value=0.9, rows=24)
    gate = Gate.model_validate({"metric": "exact_match", "minGain": 0.1, "over": over})

    (result,), verdict = decide_gates((gate,), Measurements((*SCORES, other)))

    assert (verdict, result.over) == ("Failed", over)
    assert result.message == f"exact_match gain 0.05 over {over} (0.9 → 0.95) < 0.1"


@pytest.mark.parametrize("gates", [(), (Gate(metric="exact_match", min=0.8),)], ids=["no gates", "passed"])
@pytest.mark.parametrize("veto", [True, False])
def test_a_veto_fails_what_would_pass_and_a_warning_changes_nothing(
    gates: tuple[Gate, ...], veto: bool
) -> None:
    finding = CheckFinding(check="noChange", veto=veto, message="the adapter changes nothing")

    _, verdict = decide_gates(gates, Measurements(SCORES, findings=(finding,)))

    assert verdict == ("Failed" if veto else decide_gates(gates, MEASURED)[1])


@pytest.mark.parametrize(
    ("rows", "confidence", "warned"), [(MIN_ROWS - 1, None, True), (MIN_ROWS, None, False), (24, 0.95, False)]
)
def test_a_gate_without_a_confidence_on_few_rows_warns(
    rows: int, confidence: float | None, warned: bool
) -> None:
    scores = (Score(metric="exact_match", subject="Tuned", value=0.95, rows=rows),)

    warning = few_rows_warning((Gate(metric="exact_match", min=0.8, confidence=confidence),), scores)

    assert (warning is not None) == warned
    assert warning is None or f"the values of {rows} rows" in warning
    assert few_rows_warning((), scores) is None


def test_a_status_without_room_for_all_scores_keeps_those_of_the_gates() -> None:
    names = [f"custom/m{number}" for number in range(MAX_SCORES + 5)]
    scores = tuple(Score(metric=name, subject="Tuned", value=0, rows=1) for name in names)

    kept = select_scores(scores, frozenset({names[-1]}))

    assert len(kept) == MAX_SCORES
    assert [score.metric for score in kept] == [*names[: MAX_SCORES - 1], names[-1]]


@pytest.mark.parametrize(
    ("gate", "evidence"),
    [
        ({"metric": "exact_match", "min": 0.9}, {"value": 0.95}),
        ({"metric": "exact_match", "min_gain": 0.1, "over": "Base"}, {"value": 0.95, "gain": 0.95 - 0.65}),
        ({"metric": "loss", "min_gain": 2, "over": "Base"}, {"value": 0.2, "gain": 3.1 - 0.2}),
        ({"metric": "loss", "min_gain": 3, "over": "Base"}, {"value": 0.2, "gain": 3.1 - 0.2}),
    ],
)
def test_the_evidence_decides_as_the_scores_that_a_short_message_leaves_out(
    gate: dict[str, Any], evidence: dict[str, Any]
) -> None:
    known = Measurements((), evidence={0: GateEvidence(gate=0, rows=24, **evidence)})

    (short,), verdict = decide_gates((Gate(**gate),), known)

    (whole,), expected = decide_gates((Gate(**gate),), MEASURED)
    assert (verdict, short.message, short.value) == (expected, whole.message, whole.value)


LIMITS: list[dict[str, Any]] = [
    {"min": 0.5},
    {"max": 0.5},
    {"min": 0.3, "max": 0.6},
    {"min_gain": 0.0, "over": "Base"},
    {"min_gain": -0.1, "over": "Base"},
    {"min": 0.5, "min_gain": 0.2, "over": "Base"},
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_page_of_an_evaluation_has_the_verdicts_of_the_operator(
    limits: dict[str, Any], confidence: float | None
) -> None:
    seen = set()
    for value, base, spread in product((0.1, 0.3, 0.5, 0.7), (0.3, 0.5), (None, 0.0, 0.15, 0.4)):
        bounds: dict[str, Any] = {}
        if spread is not None and confidence is not None:
            for name, figure in (("", value), ("gain_", value - base)):
                bounds |= {f"{name}low": figure - spread, f"{name}high": figure + spread}
        evidence = GateEvidence(gate=0, rows=24, value=value, gain=value - base, **bounds)
        scores = tuple(
            Score(metric="exact_match", subject=who, value=score, rows=24)
            for who, score in (("Tuned", value), ("Base", base))
        )
        gate = Gate(metric="exact_match", confidence=confidence, **limits)

        results, _ = decide_gates((gate,), Measurements(scores, {0: evidence}))
        measured = {"value": value, "gain": value - base, **bounds}
        shown = gate_verdict(ShownGate(metric="exact_match", confidence=confidence, **limits, **measured))

        assert shown == results[0].verdict, (value, base, spread)
        seen.add(shown)
    assert seen == {"Passed", "Failed"} | ({"Undecided"} if confidence else set())
