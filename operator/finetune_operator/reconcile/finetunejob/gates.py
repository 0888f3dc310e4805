"""Decide whether the scores of a run pass its gates."""

from typing import Final

from finetune_operator.api.evaluation import Gate
from finetune_operator.api.evaluationstatus import GateResult, GateVerdict, Score, Verdict
from finetune_operator.status.conditions import shortened
from finetune_operator.status.progress import find_score
from finetune_trainer.contract.metrics import METRICS

TOLERANCE: Final = 1e-9
"""Tolerance for rounding of binary fractions, so that a gain of 0.7 - 0.4 reaches a minimum of 0.3."""


def decide(gates: tuple[Gate, ...], scores: tuple[Score, ...]) -> tuple[tuple[GateResult, ...], Verdict]:
    """The result of each gate, and the verdict: the worst of failed, undecided and passed."""
    results = tuple(_decide_gate(gate, scores) for gate in gates)
    verdicts = {result.verdict for result in results}
    if not results:
        return (), "NoGates"
    if "Failed" in verdicts:
        return results, "Failed"
    return results, "Undecided" if "Undecided" in verdicts else "Passed"


def _decide_gate(gate: Gate, scores: tuple[Score, ...]) -> GateResult:
    tuned = find_score(scores, gate.metric, "Tuned")
    if tuned is None:
        return _result(gate, "Undecided", [f"{gate.metric} of the tuned model was not measured"])
    passed, findings = True, []
    if gate.min is not None:
        reached = tuned.value >= gate.min - TOLERANCE
        findings.append(f"{gate.metric} {tuned.value:.4g} {'≥' if reached else '<'} {gate.min:.4g}")
        passed = passed and reached
    if gate.max is not None:
        reached = tuned.value <= gate.max + TOLERANCE
        findings.append(f"{gate.metric} {tuned.value:.4g} {'≤' if reached else '>'} {gate.max:.4g}")
        passed = passed and reached
    if gate.min_gain is not None and gate.over is not None:
        other = find_score(scores, gate.metric, gate.over)
        if other is None:
            return _result(gate, "Undecided", [*findings, f"{gate.metric} of {gate.over} was not measured"])
        gain = METRICS[gate.metric].gain(tuned.value, over=other.value)
        # A minGain of 0 must not promote a model that learned nothing; a negative one allows equal scores.
        strict = gate.min_gain == 0
        reached = gain > TOLERANCE if strict else gain >= gate.min_gain - TOLERANCE
        over, under = (">", "≤") if strict else ("≥", "<")
        findings.append(
            f"{gate.metric} gain {gain:.4g} over {gate.over} ({other.value:.4g} → {tuned.value:.4g})"
            f" {over if reached else under} {gate.min_gain:.4g}"
        )
        passed = passed and reached
    return _result(gate, "Passed" if passed else "Failed", findings)


def _result(gate: Gate, verdict: GateVerdict, findings: list[str]) -> GateResult:
    return GateResult(metric=gate.metric, verdict=verdict, message=shortened(", ".join(findings)))
